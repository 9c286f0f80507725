"""Policy gradients without a critic: completions of one prompt are compared with each other (RLOO, GRPO).

    L = mean over completions of  sum_t w_t [ max(-A r_t, -A clip(r_t, 1-c, 1+c)) + beta k3(pi, pi_ref)_t ]

with one advantage A per completion, the same at all its tokens, r = pi / pi_old, and w_t = 1 (the gradient of the
completion's log-probability, RLOO) or 1 / length (GRPO). RLOO puts the KL penalty in the reward, not in the loss.

Reference: Ahmadian et al., 2024, Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human
Feedback in LLMs; Shao et al., 2024, DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm import checks
from jaxrl_lm.algorithms.minibatches import (
    check_micro_batches,
    evaluate_in_parts,
    forward_rows,
    run_epochs,
    summarize,
)
from jaxrl_lm.algorithms.optimizers import clipped_adam
from jaxrl_lm.algorithms.schedules import annealed
from jaxrl_lm.core import kl, masked, policy_losses
from jaxrl_lm.core.counters import next_count
from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.models.partition import trained
from jaxrl_lm.rollouts.answers import AnswerConfig
from jaxrl_lm.rollouts.generation import Generation
from jaxrl_lm.rollouts.token_policy import (
    importance_of,
    make_evaluate,
    observe,
    reference_of,
    rollout_error,
    sequence_lengths,
)
from jaxrl_lm.types import AnswerEvaluation, AnswerLearner, Evaluate, Metrics, PyTree

TokenWeight = Literal["sum", "mean"]
Comparison = Literal["leave_one_out", "standardized"]  # of RLOO, whose KL penalty is in the reward, and of GRPO


@dataclass(frozen=True, kw_only=True)
class GroupPolicyConfig:
    """Settings of the update of RLOO and GRPO.

    Attributes:
        learning_rate: initial step size of Adam.
        anneal_updates: updates over which the learning rate falls linearly to 0; 0 keeps it constant; None lets the
            trainer fill in the length of its run (the learner itself treats None as 0).
        num_epochs: passes over each batch of completions.
        num_minibatches: minibatches per epoch; must divide the number of completions.
        micro_batch_size: completions per forward and backward pass, a divisor of a minibatch's; None takes a whole
            minibatch at once. Smaller ones need less memory, and change results by rounding only.
        clip_range: clipping range of the probability ratio around 1.
        token_weight: whether a completion's loss is the "sum" over its tokens (RLOO) or their "mean" (GRPO).
        max_grad_norm: largest global norm of the gradient; 0 disables clipping.
        adam_epsilon: Adam's epsilon.
    """

    learning_rate: float = 1e-6
    anneal_updates: int | None = None
    num_epochs: int = 1
    num_minibatches: int = 1
    micro_batch_size: int | None = None
    clip_range: float = 0.2
    token_weight: TokenWeight = "mean"
    max_grad_norm: float = 1.0
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        checks.one_of(self, token_weight=TokenWeight)
        checks.at_least(self, 1, "num_epochs", "num_minibatches", "micro_batch_size")
        checks.above(self, 0, "learning_rate", "clip_range", "adam_epsilon")
        checks.at_least(self, 0, "max_grad_norm", "anneal_updates")
        checks.finite(self, "learning_rate", "adam_epsilon")

    @property
    def has_schedule(self) -> bool:
        """Whether a setting changes during a run: the learning rate always falls linearly."""
        return True


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Settings that RLOO and GRPO share: sample several completions per prompt and compare them.

    Attributes:
        answers: sampling of completions.
        group_size: completions per prompt; must divide batch_size.
        policy: policy update.
        kl_coefficient: beta.
        rescore: recompute log-probabilities with the training forward pass before learning, so that the first ratio is
            exactly 1 in any dtype. Off saves this forward pass and uses those of decoding; leave it on in bfloat16.
    """

    answers: AnswerConfig = field(default_factory=AnswerConfig)
    group_size: int = 4
    policy: GroupPolicyConfig = field(default_factory=GroupPolicyConfig)
    kl_coefficient: float = 0.05
    rescore: bool = True

    def __post_init__(self) -> None:
        if not self.rescore:
            self.answers.check_not_corrected()
        checks.at_least(self, 2, "group_size", why="completions are compared with each other")
        checks.at_least(self, 0, "kl_coefficient")
        checks.finite(self, "kl_coefficient")
        if self.answers.score_at != "last_token":
            raise InputError(
                f"answers.score_at={self.answers.score_at!r}: without a value function a completion gets one score; "
                "use 'last_token'"
            )


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """RLOO on a language model: REINFORCE with the mean reward of the prompt's other completions as baseline.

    Attributes:
        policy: policy update.
        kl_coefficient: beta; the reward of a completion is reduced by beta times its log-ratio of policy and reference.
    """

    policy: GroupPolicyConfig = field(default_factory=lambda: GroupPolicyConfig(token_weight="sum"))


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """GRPO on a language model: rewards are standardised within the completions of a prompt.

    Attributes:
        policy: policy update.
        kl_coefficient: beta, weight in the loss of the k3 estimate of the KL divergence from the reference.
    """


@record
class GroupPolicyHyperparams:
    """Settings that are traced: a sweep over them is a vmap over states."""

    learning_rate: PyTree
    clip_range: PyTree
    kl_coefficient: PyTree


@record
class GroupPolicyState:
    """State of RLOO and GRPO.

    Attributes:
        params: parameters of the policy.
        optimizer: Adam's moments of the trained parameters.
        num_updates: updates done, int32 scalar.
        hyperparams: traced settings.
    """

    params: PyTree
    optimizer: PyTree
    num_updates: PyTree
    hyperparams: GroupPolicyHyperparams


class AnswerBatch(NamedTuple):
    """B completions of at most T tokens.

    Attributes:
        observations: inputs of `evaluate`, leaves `[B, ...]`.
        actions: tokens, `[B, T]`.
        log_probs: under the policy that sampled them, `[B, T]`, nats.
        reference_log_probs: under the reference policy, `[B, T]`, nats.
        advantages: of the completions, `[B, 1]`, or of their tokens, `[B, T]`, if weighted by importance.
        mask: 1 at completion tokens, `[B, T]`.
    """

    observations: PyTree
    actions: PyTree
    log_probs: PyTree
    reference_log_probs: PyTree
    advantages: PyTree
    mask: PyTree


def make_rloo(config: RLOOConfig, model: CausalLM) -> AnswerLearner:
    """RLOO for a language model; the metrics of `update` are losses, ratios, clipping, KL and lengths."""
    return _make_learner(config, model, kind="leave_one_out")


def make_grpo(config: GRPOConfig, model: CausalLM) -> AnswerLearner:
    """GRPO for a language model; the metrics are those of RLOO."""
    return _make_learner(config, model, kind="standardized")


def _make_learner(config: GroupConfig, model: CausalLM, *, kind: Comparison) -> AnswerLearner:
    settings = config.policy
    evaluate = make_evaluate(model, temperature=config.answers.temperature)
    score = evaluate_in_parts(evaluate, settings.micro_batch_size, sequence_lengths)
    optimizer = clipped_adam("pytorch", epsilon=settings.adam_epsilon, max_grad_norm=settings.max_grad_norm)
    kl_in_loss = config.kl_coefficient if kind == "standardized" else 0.0

    def init(params: PyTree, key: jax.Array) -> GroupPolicyState:
        del key
        return _init_state(settings, params, optimizer.init(trained(params)), kl_in_loss)

    def evaluate_answers(state: GroupPolicyState, reference_params: PyTree, generation: Generation) -> AnswerEvaluation:
        num_rows = len(generation.sequences) // settings.num_minibatches
        check_micro_batches(settings.micro_batch_size, num_rows, "completions")
        inputs = observe(generation), generation.actions
        reference = score(reference_of(reference_params, state.params), *inputs)
        found: Any = score(state.params, *inputs) if config.rescore else generation
        return AnswerEvaluation(log_probs=found.log_probs, values=None, reference_log_probs=reference.log_probs)

    def update(
        state: GroupPolicyState,
        generation: Generation,
        evaluation: AnswerEvaluation,
        scores: jax.Array,
        key: jax.Array,
    ) -> tuple[GroupPolicyState, Metrics]:
        batch, metrics = _compare(config, kind, generation, scores, evaluation)
        rate = annealed(state.hyperparams.learning_rate, state.num_updates, settings.anneal_updates)

        def loss(params: PyTree, rows: WeightedAnswers) -> tuple[jax.Array, Metrics]:
            return group_loss(params, evaluate, rows, state.hyperparams)

        (params, opt_state), stacked = run_epochs(
            loss,
            (state.params, state.optimizer),
            batch,
            key,
            optimizer=optimizer,
            learning_rate=rate,
            num_epochs=settings.num_epochs,
            num_minibatches=settings.num_minibatches,
            micro_batch_size=settings.micro_batch_size,
            normalize=partial(weighted, token_weight=settings.token_weight),
            row_lengths=lambda rows: sequence_lengths(rows.answers.observations),
        )
        metrics |= rollout_error(evaluation.log_probs, generation) if config.rescore else {}
        metrics |= summarize(stacked) | {"learning_rate": rate}
        return replace(state, params=params, optimizer=opt_state, num_updates=next_count(state.num_updates)), metrics

    return AnswerLearner(
        init=init,
        evaluate=evaluate_answers,
        update=update,
        policy_params=lambda state: state.params,
        answers_per_prompt=config.group_size,
        forward_rows=partial(
            forward_rows,
            num_epochs=settings.num_epochs,
            num_minibatches=settings.num_minibatches,
            micro_batch_size=settings.micro_batch_size,
        ),
    )


def _compare(
    config: GroupConfig,
    kind: Comparison,
    generation: Generation,
    scores: jax.Array,
    evaluation: AnswerEvaluation,
) -> tuple[AnswerBatch, Metrics]:
    """The completions with their advantages within each group, and metrics; RLOO's scores are reduced by the KL."""
    mask = generation.response_mask
    answer_kl = masked.masked_sum(kl.k1(evaluation.log_probs, evaluation.reference_log_probs), mask, -1)
    penalised = scores - config.kl_coefficient * answer_kl
    groups = (penalised if kind == "leave_one_out" else scores).reshape(-1, config.group_size)
    advantages = policy_losses.group_advantages(groups, kind=kind).reshape(-1, 1)
    importance, metrics = importance_of(evaluation.log_probs, generation, config.answers.importance_limit)
    batch = AnswerBatch(
        observations=observe(generation),
        actions=generation.actions,
        log_probs=evaluation.log_probs,
        reference_log_probs=evaluation.reference_log_probs,
        advantages=advantages if importance is None else advantages * importance,
        mask=mask,
    )
    return batch, metrics | {
        "reward/with_penalty": jnp.mean(penalised),
        "reward/std_in_group": jnp.mean(jnp.std(groups, axis=-1)),
        "kl/answer": jnp.mean(answer_kl),
        "answer/length": jnp.mean(jnp.sum(mask, axis=-1), dtype=jnp.float32),
    }


def _init_state(
    settings: GroupPolicyConfig, params: PyTree, opt_state: PyTree, kl_coefficient: float
) -> GroupPolicyState:
    traced = {"learning_rate": settings.learning_rate, "clip_range": settings.clip_range}
    traced |= {"kl_coefficient": kl_coefficient}
    return GroupPolicyState(
        params=params,
        optimizer=opt_state,
        num_updates=jnp.zeros((), jnp.int32),
        hyperparams=GroupPolicyHyperparams(**{name: jnp.asarray(x, jnp.float32) for name, x in traced.items()}),
    )


class WeightedAnswers(NamedTuple):
    """Completions with weights that make the sums over their minibatch means.

    Attributes:
        answers: the completions.
        loss_weights: of tokens in the loss, `[B, T]`.
        token_weights: of tokens in the metrics, which are means over tokens, `[B, T]`.
    """

    answers: AnswerBatch
    loss_weights: jax.Array
    token_weights: jax.Array


def weighted(minibatch: AnswerBatch, *, token_weight: TokenWeight) -> WeightedAnswers:
    """A whole minibatch with its weights: its loss is a mean over completions."""
    mask = minibatch.mask
    in_answer = mask if token_weight == "sum" else masked.mean_weights(mask, -1)
    return WeightedAnswers(minibatch, in_answer / len(mask), masked.mean_weights(mask))


def group_loss(
    params: PyTree, evaluate: Evaluate, rows: WeightedAnswers, hyperparams: GroupPolicyHyperparams
) -> tuple[jax.Array, Metrics]:
    """Loss and metrics of rows of a minibatch (see the module docstring); the values of `evaluate` are not used."""
    batch, loss_weights, token_weights = rows
    evaluation = evaluate(params, batch.observations, batch.actions)
    # Masked here as well as in the sums: a non-finite ratio would put 0 * NaN into the gradient.
    log_probs, old, reference = (
        masked.zero_masked(x, batch.mask) for x in (evaluation.log_probs, batch.log_probs, batch.reference_log_probs)
    )
    advantages = jnp.broadcast_to(batch.advantages, log_probs.shape)
    surrogate = policy_losses.clipped_surrogate(log_probs, old, advantages, hyperparams.clip_range)
    divergence = kl.k3(log_probs, reference)
    policy_loss, kl_loss = (masked.weighted_sum(x, loss_weights) for x in (surrogate, divergence))
    loss = policy_loss + hyperparams.kl_coefficient * kl_loss
    metrics = {
        "loss/total": loss,
        "loss/policy": policy_loss,
        "loss/kl": kl_loss,
        "policy/entropy": masked.weighted_sum(evaluation.entropies, token_weights),
    }
    diagnostics = policy_losses.policy_diagnostics(log_probs, old, hyperparams.clip_range, token_weights)
    return loss, metrics | diagnostics
