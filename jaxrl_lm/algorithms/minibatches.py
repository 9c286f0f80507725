"""Several epochs of shuffled minibatches over a batch, used by PPO, PQN and the group policies."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxrl_lm.core.masked import masked_mean
from jaxrl_lm.core.shuffling import random_order
from jaxrl_lm.models.partition import join, split
from jaxrl_lm.types import Metrics, PyTree

MinibatchLoss = Callable[[PyTree, PyTree], tuple[jax.Array, Metrics]]
"""`loss(params, minibatch) -> (loss, metrics)`."""

IS_APPLIED = "minibatches/applied"
"""Metric of `run_epochs` with early stopping: 1 for a minibatch that was applied, 0 for one that was skipped."""


def run_epochs(
    loss: MinibatchLoss,
    carry: tuple[PyTree, PyTree],
    batch: PyTree,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    learning_rate: jax.Array,
    num_epochs: int,
    num_minibatches: int,
    should_stop: Callable[[Metrics], jax.Array] | None = None,
) -> tuple[tuple[PyTree, PyTree], Metrics]:
    """Take one gradient step per minibatch; every epoch shuffles the batch again.

    Args:
        loss: loss of parameters and a minibatch.
        carry: parameters, and the optimizer's state for those that are trained (`models.partition`).
        batch: leaves `[N, ...]`; `num_minibatches` divides N.
        key: PRNG key of the shuffling.
        optimizer: computes the step's direction.
        learning_rate: multiplies the direction.
        num_epochs: passes over the batch.
        num_minibatches: steps per epoch.
        should_stop: maps a minibatch's metrics, before its step, to whether this minibatch and all later ones are
            skipped. They are still computed, since shapes are static.

    Returns:
        Parameters and optimizer state, and the metrics of all steps, `[num_epochs, num_minibatches]`.
    """
    trained, frozen = split(carry[0])

    def step(carry: tuple[PyTree, PyTree, jax.Array], minibatch: PyTree) -> tuple[tuple[PyTree, ...], Metrics]:
        params, opt_state, is_stopped = carry
        grads, metrics = jax.grad(lambda part: loss(join(part, frozen), minibatch), has_aux=True)(params)
        direction, new_opt_state = optimizer.update(grads, opt_state, params)
        new_params = jax.tree.map(lambda p, d: (p - learning_rate * d).astype(p.dtype), params, direction)
        metrics |= {"loss/grad_norm": optax.tree.norm(grads)}
        if should_stop is not None:
            is_stopped |= should_stop(metrics)
            kept = (params, opt_state), (new_params, new_opt_state)
            new_params, new_opt_state = jax.tree.map(lambda old, new: jnp.where(is_stopped, old, new), *kept)
            metrics |= {IS_APPLIED: 1.0 - is_stopped.astype(jnp.float32)}
        return (new_params, new_opt_state, is_stopped), metrics

    def epoch(carry: tuple[PyTree, ...], order: jax.Array) -> tuple[tuple[PyTree, ...], Metrics]:
        return jax.lax.scan(step, carry, jax.tree.map(lambda x: x[order], batch))

    start = (trained, carry[1], jnp.zeros((), bool))
    orders = minibatch_rows(key, jax.tree.leaves(batch)[0].shape[0], num_epochs, num_minibatches)
    (trained, opt_state, _), stacked = jax.lax.scan(epoch, start, orders)
    return (join(trained, frozen), opt_state), stacked


def mean_metrics(stacked: Metrics) -> Metrics:
    """Means over the applied minibatches of `[epochs, minibatches]`."""
    if IS_APPLIED not in stacked:
        return {name: jnp.mean(values) for name, values in stacked.items()}
    is_applied = stacked[IS_APPLIED]
    metrics = {name: masked_mean(values, is_applied) for name, values in stacked.items()}
    return metrics | {IS_APPLIED: jnp.mean(is_applied)}


def summarize(stacked: Metrics) -> Metrics:
    """Means over `[epochs, minibatches]`, the largest ratio error, and the ratio error of the first minibatch."""
    max_errors = stacked["ratio/max_error"]
    errors = {"ratio/max_error": jnp.max(max_errors), "ratio/first_max_error": max_errors[0, 0]}
    return mean_metrics(stacked) | errors


def minibatch_rows(key: jax.Array, size: int, num_epochs: int, num_minibatches: int) -> jax.Array:
    """The rows of each minibatch of `run_epochs`, int32 `[num_epochs, num_minibatches, N / num_minibatches]`.

    Args:
        key: of the update.
        size: N, rows of the batch.
        num_epochs: passes over the batch.
        num_minibatches: divides N.
    """
    orders = jax.lax.map(partial(random_order, size=size), jax.random.split(key, num_epochs))
    return orders.reshape(num_epochs, num_minibatches, size // num_minibatches)
