"""Policy gradients without a critic: answers to one prompt are measured against each other (RLOO, GRPO).

    L = mean over answers of  sum_t w_t [ max(-A r_t, -A clip(r_t, 1-c, 1+c)) + beta k3(pi, pi_ref)_t ]

with one advantage A an answer, the same at all its tokens, r = pi / pi_old, and w_t = 1 (the gradient of the whole
answer's log-probability, RLOO) or 1 / length (GRPO).

Reference: Ahmadian et al., 2024, Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human
Feedback in LLMs; Shao et al., 2024, DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl_lm.algorithms.minibatches import run_epochs, summarize
from jaxrl_lm.algorithms.optimizers import clipped_adam
from jaxrl_lm.algorithms.schedules import annealed
from jaxrl_lm.core import kl, masked, policy_losses
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import Algorithm, Evaluate, Metrics, PyTree

TokenWeight = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class GroupPolicyConfig:
    """Settings of the update.

    Attributes:
        learning_rate: Adam's step size at the first update.
        anneal_updates: the learning rate falls linearly to 0 over so many updates; 0 keeps it; None lets the trainer
            fill in the length of its run (`make_group_policy` alone then keeps the rate).
        num_epochs: passes over each batch of answers.
        num_minibatches: parts of an epoch; must divide the number of answers.
        clip_range: how far the ratio may move from 1 and still be pushed.
        token_weight: whether an answer's loss is the "sum" over its tokens (RLOO) or their "mean" (GRPO).
        max_grad_norm: longest gradient, by global norm; 0 leaves gradients as they are.
        adam_epsilon: Adam's epsilon.
    """

    learning_rate: float = 1e-6
    anneal_updates: int | None = None
    num_epochs: int = 1
    num_minibatches: int = 1
    clip_range: float = 0.2
    token_weight: TokenWeight = "mean"
    max_grad_norm: float = 1.0
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.token_weight not in get_args(TokenWeight):
            raise InputError(f"token_weight={self.token_weight!r} must be one of {', '.join(get_args(TokenWeight))}")
        for name in ("num_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "clip_range", "adam_epsilon"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("max_grad_norm", "anneal_updates"):
            if not (getattr(self, name) or 0) >= 0:
                raise InputError(f"{name}={getattr(self, name)} must be 0 or more")


@struct.dataclass(kw_only=True)
class GroupPolicyHyperparams:
    """Settings that are traced: a sweep over them is a vmap over states."""

    learning_rate: PyTree
    clip_range: PyTree
    kl_coefficient: PyTree


@struct.dataclass(kw_only=True)
class GroupPolicyState:
    """Everything an update changes or reads.

    Attributes:
        params: of the policy.
        optimizer: Adam's moments.
        num_updates: updates made so far, int32 scalar.
        hyperparams: traced settings.
    """

    params: PyTree
    optimizer: PyTree
    num_updates: PyTree
    hyperparams: GroupPolicyHyperparams


class AnswerBatch(NamedTuple):
    """B answers of at most T tokens.

    Attributes:
        observations: what `evaluate` needs, leaves `[B, ...]`.
        actions: tokens, `[B, T]`.
        log_probs: of the policy that answered, `[B, T]`, nats.
        reference_log_probs: of the reference policy, `[B, T]`, nats.
        advantages: of whole answers, `[B]`.
        mask: 1 for the answers' tokens, `[B, T]`.
    """

    observations: PyTree
    actions: PyTree
    log_probs: PyTree
    reference_log_probs: PyTree
    advantages: PyTree
    mask: PyTree


def make_group_policy(config: GroupPolicyConfig, evaluate: Evaluate, *, kl_coefficient: float) -> Algorithm:
    """`init` and `update` for a policy; `update` takes an `AnswerBatch` in place of a trajectory.

    Args:
        config: static settings; those in `GroupPolicyHyperparams` become part of the state.
        evaluate: `(params, observations, actions) -> ActionEvaluation`; its values are not used.
        kl_coefficient: beta of the penalty in the loss; 0 where the reward holds it.

    Returns:
        the algorithm. `update` returns scalar metrics: losses, ratio and clipping, gradient norm.
    """
    optimizer = clipped_adam("pytorch", epsilon=config.adam_epsilon, max_grad_norm=config.max_grad_norm)

    def init(params: PyTree, key: jax.Array) -> GroupPolicyState:
        del key
        traced = {"learning_rate": config.learning_rate, "clip_range": config.clip_range}
        traced |= {"kl_coefficient": kl_coefficient}
        return GroupPolicyState(
            params=params,
            optimizer=optimizer.init(params),
            num_updates=jnp.zeros((), jnp.int32),
            hyperparams=GroupPolicyHyperparams(**{name: jnp.asarray(x, jnp.float32) for name, x in traced.items()}),
        )

    def update(state: GroupPolicyState, batch: AnswerBatch, key: jax.Array) -> tuple[GroupPolicyState, Metrics]:
        learning_rate = annealed(state.hyperparams.learning_rate, state.num_updates, config.anneal_updates)

        def loss(params: PyTree, minibatch: AnswerBatch) -> tuple[jax.Array, Metrics]:
            return _loss(params, evaluate, minibatch, state.hyperparams, config.token_weight)

        (params, opt_state), stacked = run_epochs(
            loss,
            (state.params, state.optimizer),
            batch,
            key,
            optimizer=optimizer,
            learning_rate=learning_rate,
            num_epochs=config.num_epochs,
            num_minibatches=config.num_minibatches,
        )
        new = replace(state, params=params, optimizer=opt_state, num_updates=state.num_updates + 1)
        return new, summarize(stacked) | {"learning_rate": learning_rate}

    return Algorithm(init=init, update=update)  # pyright: ignore[reportArgumentType]


def _loss(
    params: PyTree,
    evaluate: Evaluate,
    batch: AnswerBatch,
    hyperparams: GroupPolicyHyperparams,
    token_weight: TokenWeight,
) -> tuple[jax.Array, Metrics]:
    evaluation = evaluate(params, batch.observations, batch.actions)
    # Masked here as well as in the sums: a ratio that is not finite would leave 0 * NaN in the gradient.
    log_probs, old, reference = (
        masked.zero_masked(x, batch.mask) for x in (evaluation.log_probs, batch.log_probs, batch.reference_log_probs)
    )
    advantages = jnp.broadcast_to(batch.advantages[:, None], log_probs.shape)
    surrogate = policy_losses.clipped_surrogate(log_probs, old, advantages, hyperparams.clip_range)
    divergence = kl.k3(log_probs, reference)
    reduce = masked.masked_sum if token_weight == "sum" else masked.masked_mean
    policy_loss, kl_loss = (jnp.mean(reduce(x, batch.mask, -1)) for x in (surrogate, divergence))
    loss = policy_loss + hyperparams.kl_coefficient * kl_loss
    metrics = {
        "loss/total": loss,
        "loss/policy": policy_loss,
        "loss/kl": kl_loss,
        "policy/entropy": masked.masked_mean(evaluation.entropies, batch.mask),
    }
    diagnostics = policy_losses.policy_diagnostics(log_probs, old, hyperparams.clip_range, batch.mask)
    return loss, metrics | diagnostics
