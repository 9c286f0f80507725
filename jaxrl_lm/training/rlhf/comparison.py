"""Compare policies on the same prompts: their completions, the rewards of these, and the KL from the reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import data, models, rewards, rollouts
from jaxrl_lm.algorithms.language_ppo import LanguagePPOConfig
from jaxrl_lm.core import masked, returns
from jaxrl_lm.data import Prompt
from jaxrl_lm.rollouts import Generation
from jaxrl_lm.training.language_model import LoadedModel, load_model
from jaxrl_lm.types import PyTree


@dataclass(frozen=True, kw_only=True)
class TokenStrip:
    """One completion, token by token.

    Attributes:
        tokens: texts of the tokens, T.
        rewards: KL penalty of each token, with the initial coefficient; the last one includes the score (or
            `missing_stop_score`, if the completion has no stop token), T.
        kl: log pi - log pi_ref of each token, nats, T.
        advantages: from GAE with the policy's value head (zeros without one), T.
    """

    tokens: list[str]
    rewards: list[float]
    kl: list[float]
    advantages: list[float]


@dataclass(frozen=True, kw_only=True)
class PolicyCompletions:
    """A policy's completions of B prompts.

    Attributes:
        name: name of the policy.
        prompts: prompts as text, B.
        completions: completions as text, B.
        scores: rewards of the completions, `[B]` by name of the reward.
        kl: log pi - log pi_ref of each completion, nats, `[B]`.
        strips: the first completions, token by token.
    """

    name: str
    prompts: list[str]
    completions: list[str]
    scores: dict[str, np.ndarray]
    kl: np.ndarray
    strips: list[TokenStrip]


def compare_policies(
    policies: Mapping[str, str | Path],
    reference: str | Path,
    prompts: list[Prompt],
    reward_functions: Mapping[str, rewards.RewardFunction],
    config: LanguagePPOConfig,
    *,
    proxy: str,
    num_strips: int,
    seed: int,
) -> list[PolicyCompletions]:
    """Complete the same prompts with every policy, using the same random keys.

    Args:
        policies: folders or hub ids by name; all with the reference's model family and tokenizer.
        reference: folder or hub id of the policy that the KL is measured from.
        prompts: B prompts.
        reward_functions: rewards by name.
        config: settings of sampling, discounting and the KL penalty.
        proxy: name of the reward that is paid at the last token of the strips.
        num_strips: number of completions to show token by token.
        seed: random seed of sampling.

    Raises:
        InputError: a folder or a prompt is invalid.
    """
    loaded = load_model(reference)
    sampling = config.answers.sampling(loaded.tokenizer)
    longest = rollouts.longest_prompt(loaded.model, sampling.max_new_tokens)
    ids = data.encode_prompts(prompts, loaded.tokenizer, max_tokens=longest)
    input_ids, mask = data.left_pad(ids, pad_id=sampling.pad_token, width=max(map(len, ids)))
    found = []
    for name, folder in policies.items():
        model, params = models.from_pretrained(folder, "value")
        generation = rollouts.generate(model, params, input_ids, mask, jax.random.key(seed), sampling)
        completions = rollouts.decode(loaded.tokenizer, generation)
        scores = {
            reward: np.asarray(rewards.score_completions(function, prompts, completions))
            for reward, function in reward_functions.items()
        }
        paid = config.answers.paid_scores(scores[proxy], rollouts.ended_by_stop(generation, sampling))
        columns = _per_token(loaded, model, params, generation, paid, config)
        found.append(
            PolicyCompletions(
                name=name,
                prompts=[prompt.text() for prompt in prompts],
                completions=completions,
                scores=scores,
                kl=np.asarray(columns.kl).sum(axis=-1),
                strips=_strips(loaded.tokenizer, generation, columns, num_strips),
            )
        )
    return found


class _PerToken(NamedTuple):
    """Rewards, KL and advantages of completions, each `[B, T]`."""

    rewards: jax.Array
    kl: jax.Array
    advantages: jax.Array


def _per_token(
    reference: LoadedModel,
    model: models.CausalLM,
    params: PyTree,
    generation: Generation,
    scores: np.ndarray,
    config: LanguagePPOConfig,
) -> _PerToken:
    """What PPO would compute from these completions in its first update."""
    mask, temperature = generation.response_mask, config.answers.temperature
    evaluate = jax.jit(rollouts.make_evaluate(model, temperature=temperature))
    evaluation = evaluate(params, rollouts.observe(generation), generation.actions)
    token_rewards, token_kl = rewards.token_rewards(
        jnp.asarray(scores, jnp.float32),
        evaluation.log_probs,
        rollouts.answer_log_probs(reference.model, reference.params, generation, temperature),
        mask,
        mask,
        jnp.float32(config.kl.coefficient),
    )
    return _PerToken(token_rewards, token_kl, _advantages(token_rewards, evaluation.values, mask, config))


def _advantages(token_rewards: jax.Array, values: jax.Array, mask: jax.Array, config: LanguagePPOConfig) -> jax.Array:
    """GAE `[B, T]` of completions whose episode ends with their last token."""
    continues = masked.has_next_kept(mask).astype(jnp.float32)
    return returns.generalized_advantages(
        token_rewards,
        values,
        masked.next_kept(values, mask),
        config.discount * continues,
        config.trace_decay * continues,
        mask.astype(jnp.float32),
    )


def _strips(tokenizer: Any, generation: Generation, columns: _PerToken, count: int) -> list[TokenStrip]:
    """The first completions, token by token."""
    lengths = np.asarray(generation.response_mask).sum(axis=-1)
    tokens = np.asarray(generation.actions)
    numbers = [np.asarray(column) for column in columns]
    strips = []
    for row, length in enumerate(lengths[:count]):
        paid, kl, advantages = (column[row, :length].tolist() for column in numbers)
        texts = [tokenizer.decode([int(token)]) for token in tokens[row, :length]]
        strips.append(TokenStrip(tokens=texts, rewards=paid, kl=kl, advantages=advantages))
    return strips
