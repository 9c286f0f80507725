"""Policies side by side: what they answer to the same prompts, what rewards think of it, how far they have moved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import data, models, rewards, rollouts
from jaxrl_lm.algorithms.language_ppo import LanguagePPOConfig
from jaxrl_lm.core import masked, returns
from jaxrl_lm.data import Prompt
from jaxrl_lm.rollouts import Generation
from jaxrl_lm.training.language_model import load_model


@dataclass(frozen=True, kw_only=True)
class TokenStrip:
    """One answer, token by token.

    Attributes:
        tokens: their texts, T.
        rewards: the penalty of each token, at the coefficient that training begins with, and the score at the last
            (that of an answer without a stop, where the settings name one), T.
        kl: log pi - log pi_ref of each token, nats, T.
        advantages: by GAE with the values of the policy's own head, which are 0 where it has none, T.
    """

    tokens: list[str]
    rewards: list[float]
    kl: list[float]
    advantages: list[float]


@dataclass(frozen=True, kw_only=True)
class PolicyAnswers:
    """A policy's answers to B prompts.

    Attributes:
        name: of the policy.
        prompts: for people to read, B.
        answers: texts, B.
        scores: what each reward gives them, `[B]` by name.
        kl: log pi - log pi_ref of each answer, nats, `[B]`.
        strips: the first answers token by token.
    """

    name: str
    prompts: list[str]
    answers: list[str]
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
) -> list[PolicyAnswers]:
    """Let every policy answer the same prompts, from the same keys.

    Args:
        policies: folders or hub ids by name; all of the reference's family and tokenizer.
        reference: the folder or hub id that KL is measured from.
        prompts: B of them.
        reward_functions: by name.
        config: how answers are drawn, discounted and penalised.
        proxy: name of the reward that the strips' last tokens are paid.
        num_strips: answers that are told token by token.
        seed: of sampling.

    Raises:
        InputError: a folder or a prompt is not what it must be.
    """
    loaded = load_model(reference)
    reference_model, reference_params, tokenizer = loaded.model, loaded.params, loaded.tokenizer
    sampling = config.answers.sampling(tokenizer)
    longest = rollouts.longest_prompt(reference_model, sampling.max_new_tokens)
    ids = data.encode_prompts(prompts, tokenizer, max_tokens=longest)
    input_ids, mask = data.left_pad(ids, pad_id=sampling.pad_token, width=max(map(len, ids)))
    found = []
    for name, folder in policies.items():
        model, params = models.from_pretrained(folder, "value")
        generation = rollouts.generate(model, params, input_ids, mask, jax.random.key(seed), sampling)
        answers = rollouts.decode(tokenizer, generation)
        scores = {
            reward: np.asarray(rewards.score_completions(function, prompts, answers))
            for reward, function in reward_functions.items()
        }
        evaluate = jax.jit(rollouts.make_evaluate(model, temperature=sampling.temperature))
        chosen = generation.actions
        evaluation = evaluate(params, rollouts.observe(generation), chosen)
        reference_log_probs = rollouts.answer_log_probs(
            reference_model, reference_params, generation, sampling.temperature
        )
        paid = config.answers.paid_scores(scores[proxy], rollouts.ended_by_stop(generation, sampling))
        answered = generation.response_mask
        token_rewards, token_kl = rewards.token_rewards(
            jnp.asarray(paid, jnp.float32),
            evaluation.log_probs,
            reference_log_probs,
            answered,
            answered,
            jnp.float32(config.kl.coefficient),
        )
        advantages = _advantages(token_rewards, evaluation.values, answered, config)
        strips = _strips(tokenizer, generation, (token_rewards, token_kl, advantages), num_strips)
        found.append(
            PolicyAnswers(
                name=name,
                prompts=[prompt.text() for prompt in prompts],
                answers=answers,
                scores=scores,
                kl=np.asarray(token_kl).sum(axis=-1),
                strips=strips,
            )
        )
    return found


def _advantages(token_rewards: jax.Array, values: jax.Array, mask: jax.Array, config: LanguagePPOConfig) -> jax.Array:
    """GAE `[B, T]` over answers that end with their last token."""
    continues = masked.has_next_kept(mask).astype(jnp.float32)
    return returns.generalized_advantages(
        token_rewards,
        values,
        masked.next_kept(values, mask),
        config.discount * continues,
        config.trace_decay * continues,
        mask.astype(jnp.float32),
    )


def _strips(
    tokenizer: Any, generation: Generation, columns: tuple[jax.Array, jax.Array, jax.Array], count: int
) -> list[TokenStrip]:
    """The first answers token by token; columns are rewards, KL and advantages `[B, T]`."""
    lengths = np.asarray(generation.response_mask).sum(axis=-1)
    tokens = np.asarray(generation.actions)
    numbers = [np.asarray(column) for column in columns]
    strips = []
    for row, length in enumerate(lengths[:count]):
        paid, kl, advantages = (column[row, :length].tolist() for column in numbers)
        texts = [tokenizer.decode([int(token)]) for token in tokens[row, :length]]
        strips.append(TokenStrip(tokens=texts, rewards=paid, kl=kl, advantages=advantages))
    return strips
