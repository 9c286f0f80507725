"""PPO on a language model whose actions are tokens: pure functions of completions and their scores.

The reward is a KL penalty at each token, plus the score at the end of the completion,

    r_t = -beta (log pi(a_t) - log pi_ref(a_t)),        r_end += score,

and `algorithms/ppo.py` learns from this trajectory as from any other.

Reference: Ziegler et al., 2019, Fine-Tuning Language Models from Human Preferences.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_lm import checks
from jaxrl_lm.algorithms.minibatches import evaluate_in_parts, forward_rows
from jaxrl_lm.algorithms.ppo import PPOConfig, PPOState, check_minibatches, make_ppo
from jaxrl_lm.core import kl, masked
from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.rewards.token_rewards import token_rewards, value_mask_of
from jaxrl_lm.rollouts.answers import AnswerConfig
from jaxrl_lm.rollouts.generation import Generation
from jaxrl_lm.rollouts.token_policy import (
    importance_of,
    make_evaluate,
    observe,
    reference_of,
    rollout_error,
    sequence_lengths,
    token_trajectory,
)
from jaxrl_lm.types import AnswerEvaluation, AnswerLearner, Metrics, PyTree, Trajectory


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """Penalty on the KL divergence from the reference policy, the model that training starts from.

    Attributes:
        coefficient: beta, in score units per nat; the initial value if adaptive.
        target: target KL of the adaptive coefficient, in nats per completion; None keeps the coefficient fixed.
        horizon: episodes over which the adaptive coefficient moves by its proportional error.
    """

    coefficient: float = 0.15
    target: float | None = 6.0
    horizon: int = 10_000

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "coefficient", prefix="kl.")
        checks.finite(self, "coefficient", "target", prefix="kl.")
        checks.above(self, 0, "target", prefix="kl.", why="nats, or none for a fixed coefficient")
        checks.at_least(self, 1, "horizon", prefix="kl.", why="it counts episodes")


@dataclass(frozen=True, kw_only=True)
class LanguagePPOConfig:
    """Settings of PPO on a language model; one completion per prompt.

    Attributes:
        answers: sampling of completions.
        discount: gamma.
        trace_decay: lambda of GAE.
        kl: KL penalty.
        ppo: PPO update.
        rescore: recompute log-probabilities and values with the training forward pass before learning, so that the
            first ratio is exactly 1 in any dtype. Off saves this forward pass and uses the values of decoding, whose
            first ratio is 1 up to rounding; leave it on in bfloat16.
    """

    answers: AnswerConfig = field(default_factory=AnswerConfig)
    discount: float = 1.0
    trace_decay: float = 0.95
    kl: KLConfig = field(default_factory=KLConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    rescore: bool = True

    def __post_init__(self) -> None:
        checks.between(self, 0, 1, "discount", "trace_decay")
        if self.ppo.minibatch_unit != "sequences":
            raise InputError(
                f"ppo.minibatch_unit={self.ppo.minibatch_unit!r}: the tokens of a completion are scored together; "
                "use 'sequences'"
            )
        if not self.rescore:
            self.answers.check_not_corrected()
        if not self.rescore and self.answers.score_at == "after_end":
            raise InputError(
                "rescore=False: answers.score_at='after_end' needs the value after the last token, which decoding "
                "does not compute; leave rescore on"
            )


@record
class LanguagePPOState:
    """State of PPO on a language model.

    Attributes:
        ppo: parameters, optimizer, counters, hyperparameters.
        kl_coefficient: beta, float32 scalar.
    """

    ppo: PPOState
    kl_coefficient: PyTree


def make_language_ppo(
    config: LanguagePPOConfig, model: CausalLM, *, value_model: CausalLM | None = None
) -> AnswerLearner:
    """PPO for a language model.

    Args:
        config: settings; `ppo.anneal_updates` is the number of updates over which the learning rate falls.
        model: policy, with a value head unless `value_model` is given.
        value_model: separate value network; the parameters are then `{"policy": ..., "value": ...}`.

    Returns:
        The learner. `update` returns the metrics of `make_ppo`, and KL, rewards and lengths of the completions.
    """
    temperature = config.answers.temperature
    evaluate = make_evaluate(model, temperature=temperature, value_model=value_model)
    algorithm = make_ppo(config.ppo, evaluate, row_lengths=sequence_lengths)
    in_parts = partial(evaluate_in_parts, size=config.ppo.micro_batch_size, row_lengths=sequence_lengths)
    score, score_by_reference = in_parts(evaluate), in_parts(make_evaluate(model, temperature=temperature))

    def policy_of(params: PyTree) -> PyTree:
        return params if value_model is None else params["policy"]

    def init(params: PyTree, key: jax.Array) -> LanguagePPOState:
        return LanguagePPOState(
            ppo=algorithm.init(params, key), kl_coefficient=jnp.asarray(config.kl.coefficient, jnp.float32)
        )

    def evaluate_answers(state: LanguagePPOState, reference_params: PyTree, generation: Generation) -> AnswerEvaluation:
        check_minibatches(config.ppo, *generation.response_mask.shape)
        params, inputs = state.ppo.params, (observe(generation), generation.actions)
        reference = score_by_reference(reference_of(reference_params, policy_of(params)), *inputs)
        found: Any = score(params, *inputs) if config.rescore else generation
        return AnswerEvaluation(log_probs=found.log_probs, values=found.values, reference_log_probs=reference.log_probs)

    def update(
        state: LanguagePPOState,
        generation: Generation,
        evaluation: AnswerEvaluation,
        scores: jax.Array,
        key: jax.Array,
    ) -> tuple[LanguagePPOState, Metrics]:
        coefficient = state.kl_coefficient
        metrics = rollout_error(evaluation.log_probs, generation) if config.rescore else {}
        trajectory, found = _penalized(config, generation, scores, evaluation, coefficient)
        ppo_state, ppo_metrics = algorithm.update(state.ppo, trajectory, key)
        coefficient = _next_coefficient(config.kl, coefficient, found["kl/answer"], num_episodes=len(scores))
        return LanguagePPOState(ppo=ppo_state, kl_coefficient=coefficient), metrics | ppo_metrics | found

    return AnswerLearner(
        init=init,
        evaluate=evaluate_answers,
        update=update,
        policy_params=lambda state: policy_of(state.ppo.params),
        answers_per_prompt=1,
        forward_rows=partial(
            forward_rows,
            num_epochs=config.ppo.num_epochs,
            num_minibatches=config.ppo.num_minibatches,
            micro_batch_size=config.ppo.micro_batch_size,
        ),
    )


def _penalized(
    config: LanguagePPOConfig,
    generation: Generation,
    scores: jax.Array,
    evaluation: AnswerEvaluation,
    coefficient: jax.Array,
) -> tuple[Trajectory, Metrics]:
    """The completions as a trajectory whose rewards are the scores and the KL penalty; with metrics of both."""
    mask, log_probs = generation.response_mask, evaluation.log_probs
    value_mask = value_mask_of(mask, is_paid_after_end=config.answers.score_at == "after_end")
    rewards, token_kl = token_rewards(scores, log_probs, evaluation.reference_log_probs, mask, value_mask, coefficient)
    trajectory = token_trajectory(
        generation,
        rewards,
        value_mask,
        log_probs=log_probs,
        values=evaluation.values,
        discount=config.discount,
        trace_decay=config.trace_decay,
    )
    importance, metrics = importance_of(log_probs, generation, config.answers.importance_limit)
    return replace(trajectory, importance=importance), metrics | {
        "reward/with_penalty": jnp.mean(jnp.sum(rewards, axis=-1)),
        "kl/answer": jnp.mean(jnp.sum(token_kl, axis=-1)),
        "kl/token": masked.masked_mean(token_kl, mask),
        "kl/coefficient": coefficient,
        "answer/length": jnp.mean(jnp.sum(mask, axis=-1), dtype=jnp.float32),
    }


def _next_coefficient(
    config: KLConfig, coefficient: jax.Array, answer_kl: jax.Array, *, num_episodes: int
) -> jax.Array:
    if config.target is None:
        return coefficient
    return kl.adaptive_kl_coefficient(
        coefficient, answer_kl, target=config.target, horizon=config.horizon, num_episodes=num_episodes
    )
