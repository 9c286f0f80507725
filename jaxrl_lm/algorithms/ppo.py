"""Proximal Policy Optimization over trajectories, shared by environments and language models.

Each update optionally whitens rewards, computes advantages by GAE and returns = advantages + old values, whitens
advantages (over the batch or each minibatch), then runs several epochs of minibatches on

    L = mean[ max(-A r, -A clip(r, 1-c, 1+c)) ]
        + value_coefficient * value_loss - entropy_coefficient * mean[ H ]

with r = pi(a|o) / pi_old(a|o). Only the policy's `evaluate` depends on what an action is.

Reference: Schulman et al., 2017, Proximal Policy Optimization Algorithms; Ziegler et al., 2019, Fine-Tuning
Language Models from Human Preferences.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_lm import checks
from jaxrl_lm.algorithms.minibatches import RowLengths, check_micro_batches, run_epochs, summarize
from jaxrl_lm.algorithms.optimizers import AdamKind, clipped_adam
from jaxrl_lm.algorithms.schedules import ScheduleConfig, scheduled
from jaxrl_lm.core import masked, policy_losses, returns, value_losses
from jaxrl_lm.core.counters import next_count
from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.partition import trained
from jaxrl_lm.types import Algorithm, Evaluate, Metrics, PyTree, Trajectory

MinibatchUnit = Literal["sequences", "steps"]
ValueLossKind = Literal["clipped", "squared", "huber"]
AdvantageWhitening = Literal["batch", "minibatch", "none"]


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of PPO; the defaults are those of Ziegler et al. (2019) for language models, except that gradients are
    clipped and Adam's epsilon is PyTorch's.

    Attributes:
        learning_rate: Adam's step size.
        learning_rate_schedule: schedule of the learning rate; by default it falls linearly to 0.
        anneal_updates: length of the schedules in updates; None lets the trainer fill in the length of its run; 0 (and
            None in `make_ppo` itself) keeps all settings constant.
        num_epochs: passes over each trajectory.
        num_minibatches: minibatches per epoch; must divide the number of sequences (or steps).
        minibatch_unit: what is shuffled: whole "sequences" (language models, recurrent policies) or single
            "steps".
        micro_batch_size: sequences (or steps) per forward and backward pass, a divisor of a minibatch's; None takes a
            whole minibatch at once. Smaller ones need less memory, and change results by rounding only.
        target_kl: stop an update at the first minibatch whose estimated KL divergence from the acting policy (metric
            kl/update, nats) exceeds this; that minibatch and all later ones are skipped. None never stops.
        clip_range: clipping range of the probability ratio around 1.
        clip_range_schedule: schedule of the clip range.
        value_loss: half the "squared" error, the same "clipped" around the old value, or "huber".
        value_clip_range: largest change from the old value ("clipped"), or error beyond which the loss is linear
            ("huber"), in units of return; not used by "squared".
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of the entropy bonus.
        entropy_schedule: schedule of the entropy weight.
        max_grad_norm: largest global norm of the gradient; 0 disables clipping.
        adam: use Adam's epsilon as in "pytorch" or as in "tensorflow".
        adam_epsilon: Adam's epsilon.
        whiten_rewards: divide rewards by their standard deviation, keeping the mean.
        whiten_advantages: standardise advantages over the whole "batch", over each "minibatch", or not at all ("none").
    """

    learning_rate: float = 1e-5
    learning_rate_schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="linear"))
    anneal_updates: int | None = None
    num_epochs: int = 4
    num_minibatches: int = 1
    minibatch_unit: MinibatchUnit = "sequences"
    micro_batch_size: int | None = None
    target_kl: float | None = None
    clip_range: float = 0.2
    clip_range_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    value_loss: ValueLossKind = "clipped"
    value_clip_range: float = 0.2
    value_coefficient: float = 0.1
    entropy_coefficient: float = 0.0
    entropy_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    max_grad_norm: float = 1.0
    adam: AdamKind = "pytorch"
    adam_epsilon: float = 1e-5
    whiten_rewards: bool = False
    whiten_advantages: AdvantageWhitening = "batch"

    def __post_init__(self) -> None:
        checks.one_of(
            self,
            minibatch_unit=MinibatchUnit,
            value_loss=ValueLossKind,
            adam=AdamKind,
            whiten_advantages=AdvantageWhitening,
        )
        checks.at_least(self, 1, "num_epochs", "num_minibatches", "micro_batch_size")
        checks.above(self, 0, "learning_rate", "clip_range", "value_clip_range", "adam_epsilon", "target_kl")
        checks.at_least(self, 0, "value_coefficient", "entropy_coefficient", "max_grad_norm", "anneal_updates")
        checks.finite(self, "learning_rate", "adam_epsilon", "value_coefficient", "entropy_coefficient")

    @property
    def has_schedule(self) -> bool:
        """Whether a setting changes during a run."""
        schedules = (self.learning_rate_schedule, self.clip_range_schedule, self.entropy_schedule)
        return not all(schedule.is_constant for schedule in schedules)


@record
class PPOHyperparams:
    """Settings that are traced: a sweep over them is a vmap over states."""

    learning_rate: PyTree
    clip_range: PyTree
    value_clip_range: PyTree
    value_coefficient: PyTree
    entropy_coefficient: PyTree


@record
class PPOState:
    """State of PPO.

    Attributes:
        params: parameters of the policy and its value function.
        optimizer: Adam's moments of the trained parameters.
        num_updates: updates done, int32 scalar.
        hyperparams: traced settings.
    """

    params: PyTree
    optimizer: PyTree
    num_updates: PyTree
    hyperparams: PPOHyperparams


@record
class _Batch:
    """The parts of a trajectory that the loss reads; only these are shuffled.

    Attributes:
        weights: masks of the steps; in a normalized minibatch their weights in means, which sum to 1.
        value_weights: the same of the steps whose value counts.
        importance: of the trajectory; in a normalized minibatch it is part of the advantages.
    """

    observations: PyTree
    actions: PyTree
    log_probs: PyTree
    values: PyTree
    advantages: PyTree
    returns: PyTree
    weights: PyTree
    value_weights: PyTree
    importance: PyTree


def make_ppo(config: PPOConfig, evaluate: Evaluate, *, row_lengths: RowLengths | None = None) -> Algorithm:
    """PPO's `init` and `update` for a policy.

    Args:
        config: settings; those in `PPOHyperparams` become part of the state.
        evaluate: `(params, observations, actions) -> ActionEvaluation`.
        row_lengths: of observations, for micro-batches of about the same size; None if all rows are alike.

    Returns:
        The algorithm. `update` returns scalar metrics: losses, ratio and clipping, gradient norm, and
        `ratio/first_max_error`, the largest |ratio - 1| of the first minibatch of the first epoch, which is 0
        up to rounding when the rollout's log-probabilities agree with `evaluate`; with a `target_kl` also
        `minibatches/applied`, the share of minibatches that was applied.
    """
    optimizer = clipped_adam(config.adam, epsilon=config.adam_epsilon, max_grad_norm=config.max_grad_norm)
    lengths = None if row_lengths is None else lambda rows: row_lengths(rows.observations)

    def init(params: PyTree, key: jax.Array) -> PPOState:
        del key
        names = PPOHyperparams.__dataclass_fields__
        return PPOState(
            params=params,
            optimizer=optimizer.init(trained(params)),
            num_updates=jnp.zeros((), jnp.int32),
            hyperparams=PPOHyperparams(**{name: jnp.asarray(getattr(config, name), jnp.float32) for name in names}),
        )

    def update(state: PPOState, trajectory: Trajectory, key: jax.Array) -> tuple[PPOState, Metrics]:
        check_minibatches(config, *trajectory.rewards.shape)
        chex.assert_equal_shape([trajectory.log_probs, trajectory.values, trajectory.rewards, trajectory.mask])
        batch, metrics = _prepare(config, trajectory)
        hyperparams, target_kl = _current(config, state), config.target_kl

        def loss(params: PyTree, minibatch: _Batch) -> tuple[jax.Array, Metrics]:
            return _loss(params, evaluate, minibatch, hyperparams, config)

        (params, opt_state), stacked = run_epochs(
            loss,
            (state.params, state.optimizer),
            batch,
            key,
            optimizer=optimizer,
            learning_rate=hyperparams.learning_rate,
            num_epochs=config.num_epochs,
            num_minibatches=config.num_minibatches,
            micro_batch_size=config.micro_batch_size,
            normalize=partial(_normalize, is_whitened=config.whiten_advantages == "minibatch"),
            row_lengths=lengths,
            should_stop=None if target_kl is None else lambda found: found["kl/update"] > target_kl,
        )
        metrics |= summarize(stacked) | {"learning_rate": hyperparams.learning_rate}
        return replace(state, params=params, optimizer=opt_state, num_updates=next_count(state.num_updates)), metrics

    return Algorithm(init=init, update=update)


def _current(config: PPOConfig, state: PPOState) -> PPOHyperparams:
    """The scheduled settings at this update."""
    schedules = {
        "learning_rate": config.learning_rate_schedule,
        "clip_range": config.clip_range_schedule,
        "entropy_coefficient": config.entropy_schedule,
    }
    now = {
        name: scheduled(getattr(state.hyperparams, name), schedule, state.num_updates, config.anneal_updates)
        for name, schedule in schedules.items()
    }
    return replace(state.hyperparams, **now)


def check_minibatches(config: PPOConfig, num_sequences: int, num_steps: int) -> None:
    """Check that the minibatches divide a trajectory of shape `[num_sequences, num_steps]`, and micro-batches them.

    Raises:
        InputError: they do not.
    """
    count = num_sequences * (num_steps if config.minibatch_unit == "steps" else 1)
    if count % config.num_minibatches:
        raise InputError(
            f"num_minibatches={config.num_minibatches} does not divide the {count} {config.minibatch_unit} "
            f"of a batch; choose a divisor of {count}, or another batch size"
        )
    check_micro_batches(config.micro_batch_size, count // config.num_minibatches, config.minibatch_unit)


def _prepare(config: PPOConfig, trajectory: Trajectory) -> tuple[_Batch, Metrics]:
    """Advantages and returns of the whole trajectory."""
    tr = trajectory
    rewards = tr.rewards
    if config.whiten_rewards:
        rewards = masked.whiten(rewards, tr.value_mask, shift_mean=False)
    advantages = returns.generalized_advantages(
        rewards, tr.values, tr.next_values, tr.discounts, tr.traces, tr.value_mask
    )
    targets = advantages + tr.values
    metrics = {
        "value/returns": masked.masked_mean(targets, tr.value_mask),
        "value/explained_variance": value_losses.explained_variance(tr.values, targets, tr.value_mask),
        "value/advantage_std": masked.masked_std(advantages, tr.value_mask),
    }
    if config.whiten_advantages == "batch":
        advantages = masked.whiten(advantages, tr.mask, shift_mean=True)
    batch = _Batch(
        observations=tr.observations,
        actions=tr.actions,
        log_probs=tr.log_probs,
        values=tr.values,
        advantages=advantages,
        returns=targets,
        weights=tr.mask,
        value_weights=tr.value_mask,
        importance=tr.importance,
    )
    return (_as_steps(batch) if config.minibatch_unit == "steps" else batch), metrics


def _as_steps(batch: _Batch) -> _Batch:
    """Turn every step into a sequence of length one: leaves `[B, T, ...]` become `[B * T, 1, ...]`."""
    shape = batch.log_probs.shape
    for leaf in jax.tree.leaves((batch.observations, batch.actions)):
        if leaf.shape[: len(shape)] != shape:
            raise InputError(
                f"minibatch_unit=steps needs an observation and an action at each of the {list(shape)} "
                f"steps, but one has shape {list(leaf.shape)}; choose minibatch_unit=sequences"
            )
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:]), batch)


def _normalize(minibatch: _Batch, *, is_whitened: bool) -> _Batch:
    """Turn masks into weights; whiten advantages and weigh them by importance."""
    advantages, mask = minibatch.advantages, minibatch.weights
    if is_whitened:
        advantages = masked.whiten(advantages, mask, shift_mean=True)
    if minibatch.importance is not None:
        advantages *= minibatch.importance
    return replace(
        minibatch,
        advantages=advantages,
        weights=masked.mean_weights(mask),
        value_weights=masked.mean_weights(minibatch.value_weights),
    )


def _loss(
    params: PyTree,
    evaluate: Evaluate,
    batch: _Batch,
    hyperparams: PPOHyperparams,
    config: PPOConfig,
) -> tuple[jax.Array, Metrics]:
    evaluation = evaluate(params, batch.observations, batch.actions)
    # Masked here as well as in the sum: a non-finite ratio would put 0 * NaN into the gradient.
    log_probs, clip_range = masked.zero_masked(evaluation.log_probs, batch.weights), hyperparams.clip_range
    surrogate = policy_losses.clipped_surrogate(log_probs, batch.log_probs, batch.advantages, clip_range)
    policy_loss = masked.weighted_sum(surrogate, batch.weights)
    value_loss, value_metrics = _value_loss(evaluation.values, batch, hyperparams, config.value_loss)
    entropy = masked.weighted_sum(evaluation.entropies, batch.weights)
    loss = policy_loss + hyperparams.value_coefficient * value_loss - hyperparams.entropy_coefficient * entropy
    metrics = {
        "loss/total": loss,
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "policy/entropy": entropy,
    }
    diagnostics = policy_losses.policy_diagnostics(log_probs, batch.log_probs, clip_range, batch.weights)
    return loss, metrics | value_metrics | diagnostics


def _value_loss(
    values: jax.Array, batch: _Batch, hyperparams: PPOHyperparams, kind: ValueLossKind
) -> tuple[jax.Array, Metrics]:
    weights, clip_range = batch.value_weights, hyperparams.value_clip_range
    values = masked.zero_masked(values, weights)
    if kind == "squared":
        return masked.weighted_sum(value_losses.squared_value_loss(values, batch.returns), weights), {}
    if kind == "huber":
        return masked.weighted_sum(value_losses.huber_value_loss(values, batch.returns, clip_range), weights), {}
    operands = (values, batch.values, batch.returns, clip_range)
    clip_fraction = value_losses.value_clip_fraction(*operands, weights)
    loss = masked.weighted_sum(value_losses.clipped_value_loss(*operands), weights)
    return loss, {"value/clip_fraction": clip_fraction}
