"""Prompts answered and scored on the way to learning: what PPO, RLOO and GRPO on a language model share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl_lm import data, models, rewards, rollouts, storage
from jaxrl_lm.core.checksums import checksum_arrays, checksum_value
from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.rollouts import Generation, SamplingConfig
from jaxrl_lm.training.language_config import AnswerTrainingConfig
from jaxrl_lm.training.loop import LoopConfig, run_updates
from jaxrl_lm.training.run_files import check_out, open_run, write_samples_after
from jaxrl_lm.types import Metrics, PyTree

SHOWN = ("reward/mean", "kl/answer")

Learn = Callable[[PyTree, PyTree, Generation, ArrayLike, jax.Array], tuple[PyTree, Metrics]]
"""`learn(state, reference_params, generation, scores, key) -> (state, metrics)`, jitted."""


@dataclass(frozen=True, kw_only=True)
class AnswerTask:
    """What stays the same during training.

    Attributes:
        config: the settings.
        model: the policy's module.
        reference_params: of the policy at the start, without heads.
        tokenizer: Hugging Face tokenizer of the policy.
        prompts: rows of the prompts file.
        prompt_ids: their tokens.
        prompt_width: tokens of the longest.
        reward: the reward function.
        judges: rewards that are only watched, by name.
        sampling: how answers are drawn.
    """

    config: Any
    model: CausalLM
    reference_params: PyTree
    tokenizer: Any
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    prompt_width: int
    reward: rewards.RewardFunction
    judges: dict[str, rewards.RewardFunction]
    sampling: SamplingConfig

    def policy_params(self, params: PyTree) -> PyTree:
        """The policy's part of the trained parameters."""
        return params


def load_answer_task(config: AnswerTrainingConfig, head: Literal["value"] | None) -> tuple[AnswerTask, PyTree]:
    """Load model, tokenizer, prompts and reward function.

    Args:
        config: the settings.
        head: of the policy.

    Returns:
        what stays the same, and the policy's parameters.

    Raises:
        InputError: one of them is not what it must be.
    """
    reward = rewards.load_reward(config.reward)
    judges = {
        name: load_named_reward(f"judges={judge!r}", reward)
        for judge, name, reward in zip(config.judges, config.judge_names, config.judge_rewards, strict=True)
    }
    prompts = data.read_prompts(config.prompts, column=config.prompt_column)
    folder = resolve_folder(config.model)
    model, params = models.from_pretrained(folder, head, dtype=jnp.dtype(config.dtype), is_remat=config.remat)
    tokenizer = data.load_tokenizer(folder, vocab_size=model.config.vocab_size)
    longest = rollouts.longest_prompt(model, config.answers.max_new_tokens)
    prompt_ids = data.encode_prompts(prompts, tokenizer, max_tokens=longest)
    task = AnswerTask(
        config=config,
        model=model,
        reference_params={name: part for name, part in params.items() if name != "value_head"},
        tokenizer=tokenizer,
        prompts=prompts,
        prompt_ids=prompt_ids,
        prompt_width=max(map(len, prompt_ids)),
        reward=reward,
        judges=judges,
        sampling=config.answers.sampling(tokenizer),
    )
    return task, params


def load_named_reward(option: str, spec: str) -> rewards.RewardFunction:
    """`rewards.load_reward`, whose errors name the option that asked for it."""
    try:
        return rewards.load_reward(spec)
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


def run_answer_training(
    config: Any, load: Callable[[], tuple[AnswerTask, PyTree]], start: Callable[[Any, PyTree], tuple[PyTree, Any]]
) -> tuple[storage.RunFolder, Any, PyTree]:
    """Load, make or reopen the run folder, and make the updates.

    Args:
        config: the settings.
        load: gives what stays the same, and the parameters to train.
        start: gives the state before the first update, and the update on the host.

    Returns:
        the run folder, what stays the same, and the state after the last update.

    Raises:
        InputError: an input is not what it must be; raised before the run folder is made where it can be known then.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite.
    """
    check_out(config)
    task, params = load()
    state, update = start(task, params)
    folder = open_run(
        config,
        lambda: answer_samples(task, task.policy_params(params), phase="before", step=0),
        is_extensible=config.is_extensible,
    )
    loop = LoopConfig(
        num_updates=config.num_updates,
        save_every=config.save_every,
        keep_checkpoints=config.keep_checkpoints,
        shown=SHOWN,
        wandb_project=config.wandb_project,
    )
    state = run_updates(folder, state, update, loop, fingerprints=fingerprints(task, params), resume=config.resume)
    return folder, task, state


def make_answer_update(
    task: AnswerTask,
    learn: Learn,
    *,
    params_of: Callable[[Any], PyTree],
    num_prompts: int,
) -> Callable[[Any, int], tuple[Any, dict[str, float]]]:
    """One update on the host: answers, scores, learning, metrics.

    Args:
        task: what stays the same.
        learn: everything behind the scores.
        params_of: the policy's parameters in the state, which also holds a `key`.
        num_prompts: prompts an update; each is answered equally often, and its answers stand side by side.
    """
    config = task.config
    num_answers = config.batch_size // num_prompts

    def update(state: Any, num_done: int) -> tuple[Any, dict[str, float]]:
        started = time.perf_counter()
        sample_key, learn_key = jax.random.split(jax.random.fold_in(state.key, num_done))
        chosen = np.repeat(data.prompt_order(len(task.prompts), num_prompts, num_done, config.seed), num_answers)
        generation = answer(task, params_of(state), chosen, sample_key)
        jax.block_until_ready(generation)
        generated = time.perf_counter()
        scores, reward_metrics = score(task, chosen, generation)
        scored = time.perf_counter()
        state, metrics = learn(state, task.reference_params, generation, jnp.asarray(scores), learn_key)
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        learned = time.perf_counter()
        num_tokens = float(np.sum(generation.response_mask))
        return state, reward_metrics | numbers | {
            "time/generate": generated - started,
            "time/reward": scored - generated,
            "time/learn": learned - scored,
            "time/update": learned - started,
            "time/tokens_per_second": num_tokens / (learned - started),
        }

    return update


def answer(task: AnswerTask, params: PyTree, chosen: np.ndarray, key: jax.Array) -> Generation:
    """Answer the prompts with these indices."""
    input_ids, mask = data.left_pad(
        [task.prompt_ids[i] for i in chosen], pad_id=task.sampling.pad_token, width=task.prompt_width
    )
    return rollouts.generate(task.model, params, input_ids, mask, key, task.sampling)


def score(task: AnswerTask, chosen: np.ndarray, generation: Generation) -> tuple[np.ndarray, dict[str, float]]:
    """Score answers by the reward function; `[B]` float32, and metrics, the judges' among them."""
    prompts, answers = [task.prompts[i] for i in chosen], rollouts.decode(task.tokenizer, generation)
    raw = rewards.score_completions(task.reward, prompts, answers)
    judged = {
        f"judge/{name}": float(np.mean(rewards.score_completions(judge, prompts, answers)))
        for name, judge in task.judges.items()
    }
    is_stopped = rollouts.ended_by_stop(generation, task.sampling)
    scores = task.config.answers.paid_scores(raw, is_stopped)
    return scores, judged | {
        "reward/mean": float(np.mean(raw)),
        "reward/std": float(np.std(raw)),
        "reward/score": float(np.mean(scores)),
        "answer/stopped": float(np.mean(is_stopped)),
    }


def answer_samples(task: AnswerTask, params: PyTree, *, phase: str, step: int) -> list[dict[str, Any]]:
    """Answers to the first prompts with their rewards and KL, as records for samples.jsonl.

    The key is the same before and after training, so that differences come from the weights.
    """
    count = min(task.config.num_samples, len(task.prompts))
    chosen = np.arange(count)
    generation = answer(task, params, chosen, jax.random.key(task.config.seed))
    answers = rollouts.decode(task.tokenizer, generation)
    scores = rewards.score_completions(task.reward, task.prompts[:count], answers)
    temperature = task.sampling.temperature
    policy_log_probs, reference_log_probs = (
        rollouts.answer_log_probs(task.model, each, generation, temperature)
        for each in (params, with_heads(task.reference_params, params))
    )
    divergence = np.asarray(jnp.sum(policy_log_probs - reference_log_probs, axis=-1))
    return [
        {
            "step": step,
            "phase": phase,
            "index": index,
            "prompt": task.prompts[index].text(),
            "completion": answers[index],
            "reward": float(scores[index]),
            "kl": float(divergence[index]),
        }
        for index in range(count)
    ]


def with_heads(reference_params: PyTree, policy_params: PyTree) -> PyTree:
    """The reference's parameters in the policy's form; heads, which it does not use, are the policy's."""
    return {**policy_params, **reference_params}


def fingerprints(task: AnswerTask, params: PyTree) -> dict[str, int]:
    """Checksums of what a run reads and its configuration only names; `params` are those that training starts from."""
    columns = [prompt.columns for prompt in task.prompts]
    judged_by = {"reward": task.reward} | {f"judge {name}": judge for name, judge in task.judges.items()}
    return {
        "prompts": checksum_value([task.prompt_ids, columns]),
        "model": checksum_arrays(params),
        **{name: rewards.reward_fingerprint(reward) for name, reward in judged_by.items()},
    }


def finish_answer_training(task: AnswerTask, params: PyTree, folder: storage.RunFolder, *, title: str) -> None:
    """Samples after training, the policy's folder, plots and report.

    Args:
        task: what stayed the same.
        params: of the policy.
        folder: the run.
        title: of the report.
    """
    write_samples_after(folder, answer_samples(task, params, phase="after", step=task.config.num_updates))
    models.save_pretrained(folder.model_folder, task.model, params)
    data.save_tokenizer(task.tokenizer, folder.model_folder)
    storage.write_report(folder, title=title)
