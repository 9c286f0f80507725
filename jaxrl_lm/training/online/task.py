"""The host's part of PPO, RLOO and GRPO: complete prompts and score the completions."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import data, distributed, rewards, rollouts
from jaxrl_lm.core.checksums import checksum_arrays, checksum_value
from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.rollouts import Generation, SamplingConfig
from jaxrl_lm.training.language_model import LoadedModel
from jaxrl_lm.training.online.config import OnlineRunConfig
from jaxrl_lm.training.run import Samples
from jaxrl_lm.types import PyTree


class Watched(NamedTuple):
    """Results of watched rewards for B completions.

    Attributes:
        metrics: mean score of each watched reward, and the metrics that it logs.
        columns: scores of each watched reward (None for completions it does not score), and the columns that it logs,
            each with B values.
    """

    metrics: dict[str, float]
    columns: dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class OnlineTask:
    """What does not change during training.

    Attributes:
        config: the settings.
        policy: the initial policy.
        prompts: rows of the prompts file.
        prompt_ids: their tokens.
        reward: the reward function.
        watched: rewards that are only watched, by name.
        sampling: settings of sampling.
    """

    config: OnlineRunConfig
    policy: LoadedModel
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    reward: rewards.RewardFunction
    watched: dict[str, rewards.RewardFunction]
    sampling: SamplingConfig

    @property
    def reference_params(self) -> PyTree | None:
        """Parameters of the policy at the start, without heads; None if it has adapters: its base is the reference."""
        if self.policy.model.config.lora is not None:
            return None
        return {name: part for name, part in self.policy.params.items() if name != "value_head"}

    def _width(self, chosen: np.ndarray | None = None) -> int:
        """Columns of the prompts with these indices, or of any."""
        longest = max(map(len, self.prompt_ids))
        lengths = [longest] if chosen is None else [len(self.prompt_ids[index]) for index in chosen]
        return data.bucket_width(lengths, longest=longest)

    def no_generation(self) -> Generation:
        """What has the shapes of any batch's completions, `widened`."""
        config = self.config
        shape, length = (config.batch_size, self._width()), config.answers.max_new_tokens
        ids = np.zeros((shape[0], shape[1] + length), np.int32)
        tokens, numbers = np.zeros((shape[0], length), np.int32), np.zeros((shape[0], length), np.float32)
        empty = Generation(
            sequences=ids,
            attention_mask=ids,
            response_mask=tokens,
            log_probs=numbers,
            values=numbers,
            num_steps=np.zeros((), np.int32),
        )
        placed = distributed.place_batch(empty)
        return jax.tree.map(jnp.asarray, placed)

    def widened(self, generation: Generation) -> Generation:
        """The completions with padding on the left, as wide as those of the longest prompt."""
        width = self._width() + self.config.answers.max_new_tokens
        return _with_columns(generation, width, self.sampling.pad_token)

    def narrowed(self, generation: Generation, chosen: np.ndarray) -> Generation:
        """The completions of the prompts with these indices, without what `widened` added."""
        width = self._width(chosen) + self.config.answers.max_new_tokens
        return _with_columns(generation, width, self.sampling.pad_token)

    def answer(self, params: PyTree, chosen: np.ndarray, key: jax.Array, *, per_prompt: int = 1) -> Generation:
        """Complete the prompts with these indices, each `per_prompt` times."""
        ids = [self.prompt_ids[index] for index in chosen]
        input_ids, mask = data.left_pad(ids, pad_id=self.sampling.pad_token, width=self._width(chosen))
        model = self.policy.model
        return rollouts.generate(model, params, input_ids, mask, key, self.sampling, per_prompt=per_prompt)

    def score(
        self, chosen: np.ndarray, generation: Generation, *, num_done: int = 0
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Scores of completions, float32 `[B]`, and metrics, including those of watched rewards."""
        found = self._score_by(self.reward, chosen, generation, num_done)
        metrics = found.metrics | self._watch(chosen, generation, num_done).metrics
        is_stopped = rollouts.ended_by_stop(generation, self.sampling)
        scores = self.config.answers.paid_scores(found.rewards, is_stopped)
        if len(scores) > 1:  # rounding gives equal rewards a spread
            metrics["reward/std"] = float(np.std(found.rewards)) if np.ptp(found.rewards) else 0.0
        return scores, metrics | {
            "reward/mean": float(np.mean(found.rewards)),
            "reward/score": float(np.mean(scores)),
            "answer/stopped": float(np.mean(is_stopped)),
        }

    def _watch(self, chosen: np.ndarray, generation: Generation, num_done: int) -> "Watched":
        """Score completions with the watched rewards; what they log is named `watched/NAME/...`."""
        metrics: dict[str, float] = {}
        columns: dict[str, list[Any]] = {}
        for name, reward in self.watched.items():
            found = self._score_by(reward, chosen, generation, num_done, is_partial=True)
            prefix, mean = f"watched/{name}", rewards.mean_of_scored(found.rewards)
            metrics |= {} if np.isnan(mean) else {prefix: mean}
            metrics |= {f"{prefix}/{each.removeprefix('reward/')}": value for each, value in found.metrics.items()}
            columns[prefix] = [None if np.isnan(score) else float(score) for score in found.rewards]
            columns |= {f"{prefix}/{each}": values for each, values in found.columns.items()}
        return Watched(metrics, columns)

    def _score_by(
        self,
        reward: rewards.RewardFunction,
        chosen: np.ndarray,
        generation: Generation,
        num_done: int,
        *,
        is_partial: bool = False,
    ) -> rewards.Scores:
        """Score completions with one reward function."""
        return rewards.score_batch(
            reward,
            [self.prompts[index] for index in chosen],
            rollouts.decode(self.policy.tokenizer, generation),
            completion_ids=rollouts.answer_tokens(generation),
            trainer_state=rewards.TrainerState(global_step=num_done, max_steps=self.config.num_updates),
            is_partial=is_partial,
        )

    def samples(self, params: PyTree, *, phase: str, step: int) -> Samples:
        """Completions of the first prompts with rewards and KL, as records for samples.jsonl.

        The random key is the same before and after training, so that differences come from the weights.
        """
        count = min(self.config.num_samples, len(self.prompts))
        generation = distributed.on_host(self.answer(params, np.arange(count), jax.random.key(self.config.seed)))
        answers = rollouts.decode(self.policy.tokenizer, generation)
        scores = self._score_by(self.reward, np.arange(count), generation, step)
        columns = scores.columns | self._watch(np.arange(count), generation, step).columns
        log_probs, reference_log_probs = (
            rollouts.answer_log_probs(self.policy.model, each, generation, self.sampling.temperature)
            for each in (params, rollouts.reference_of(self.reference_params, params))
        )
        divergence = distributed.on_host(jnp.sum(log_probs - reference_log_probs, axis=-1))
        return [
            {name: values[index] for name, values in columns.items()}
            | {
                "step": step,
                "phase": phase,
                "index": index,
                "prompt": self.prompts[index].text(),
                "completion": answers[index],
                "reward": float(scores.rewards[index]),
                "kl": float(divergence[index]),
            }
            for index in range(count)
        ]

    def fingerprints(self, params: PyTree) -> dict[str, int]:
        """Checksums of inputs that the settings only name; `params` are the initial parameters."""
        named = {"reward": self.reward} | {f"watched reward {name}": reward for name, reward in self.watched.items()}
        return {
            "prompts": checksum_value([self.prompt_ids, [prompt.columns for prompt in self.prompts]]),
            "model": checksum_arrays(params),
            **{name: rewards.reward_fingerprint(reward) for name, reward in named.items()},
        }


@partial(jax.jit, static_argnums=(1, 2))
def _with_columns(generation: Generation, width: int, pad_token: int) -> Generation:
    """The completions with columns added or left out on the left."""
    added = width - generation.sequences.shape[1]

    def change(leaf: jax.Array, value: int) -> jax.Array:
        return jnp.pad(leaf, ((0, 0), (max(added, 0), 0)), constant_values=value)[:, max(-added, 0) :]

    return replace(
        generation,
        sequences=change(generation.sequences, pad_token),
        attention_mask=change(generation.attention_mask, 0),
    )


def load_task(config: OnlineRunConfig, load_policy: Any) -> OnlineTask:
    """Load the reward functions, the prompts, and by `load_policy()` the model, in this order.

    Raises:
        InputError: one of them is invalid.
    """
    reward = rewards.load_rewards(config.reward, config.reward_weights)
    watched = {
        name: load_named_reward(f"watch={name}={spec!r}", spec) for name, spec in config.watched_rewards().items()
    }
    prompts = data.read_prompts(config.prompts, column=config.prompt_column, chat=config.chat)
    policy = load_policy()
    longest = longest_learnable_prompt(policy.model, config.answers.max_new_tokens)
    return OnlineTask(
        config=config,
        policy=policy,
        prompts=prompts,
        prompt_ids=data.encode_prompts(prompts, policy.tokenizer, max_tokens=longest),
        reward=reward,
        watched=watched,
        sampling=config.answers.sampling(policy.tokenizer),
    )


def longest_learnable_prompt(model: CausalLM, max_new_tokens: int) -> int:
    """The longest prompt whose completion is generated and scored with the same rotary frequencies, in tokens.

    Frequencies that depend on the length of the call differ between decoding and scoring beyond the original context,
    and the first probability ratio of an update would not be 1.

    Raises:
        InputError: there is no room for any prompt.
    """
    longest = rollouts.longest_prompt(model, max_new_tokens)
    originals = [rotary.original_positions for rotary in model.config.rotaries if rotary.depends_on_length]
    if not originals:
        return longest
    original = min(originals)
    if max_new_tokens >= original:
        raise InputError(
            f"max_new_tokens={max_new_tokens}: this model's rotary frequencies change beyond "
            f"{original} tokens, where it cannot be trained by reinforcement learning; choose fewer"
        )
    return min(longest, original - max_new_tokens)


def load_named_reward(option: str, spec: str) -> rewards.RewardFunction:
    """`rewards.load_reward`, whose errors name the option that asked for it."""
    try:
        return rewards.load_reward(spec)
    except InputError as error:
        raise InputError(f"{option}: {error}") from error
