"""Several passes over a batch in shuffled minibatches, as PPO and its relatives learn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxrl_lm.core.shuffling import random_order
from jaxrl_lm.types import Metrics, PyTree

MinibatchLoss = Callable[[PyTree, PyTree], tuple[jax.Array, Metrics]]
"""`loss(params, minibatch) -> (loss, metrics)`."""


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
) -> tuple[tuple[PyTree, PyTree], Metrics]:
    """Step down a loss once a minibatch; every epoch shuffles anew.

    Args:
        loss: of parameters and a minibatch.
        carry: parameters and the optimizer's state.
        batch: leaves `[N, ...]`; `num_minibatches` divides N.
        key: of the shuffling.
        optimizer: gives the direction.
        learning_rate: what it is multiplied by.
        num_epochs: passes over the batch.
        num_minibatches: steps a pass.

    Returns:
        parameters and optimizer's state, and the metrics of all steps, `[num_epochs, num_minibatches]`.
    """

    def step(carry: tuple[PyTree, PyTree], minibatch: PyTree) -> tuple[tuple[PyTree, PyTree], Metrics]:
        params, opt_state = carry
        grads, step_metrics = jax.grad(loss, has_aux=True)(params, minibatch)
        direction, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, d: (p - learning_rate * d).astype(p.dtype), params, direction)
        return (params, opt_state), step_metrics | {"loss/grad_norm": optax.tree.norm(grads)}

    def epoch(carry: tuple[PyTree, PyTree], epoch_key: jax.Array) -> tuple[tuple[PyTree, PyTree], Metrics]:
        return jax.lax.scan(step, carry, _shuffle(batch, epoch_key, num_minibatches))

    return jax.lax.scan(epoch, carry, jax.random.split(key, num_epochs))


def annealed(rate: jax.Array, num_updates: jax.Array, anneal_updates: int | None) -> jax.Array:
    """A learning rate that falls linearly to 0 over `anneal_updates` updates; 0 or None keeps it."""
    if anneal_updates:
        rate *= jnp.maximum(0.0, 1.0 - num_updates / anneal_updates)
    return rate


def summarize(stacked: Metrics) -> Metrics:
    """Means over `[epochs, minibatches]`, the largest error of a ratio, and that of the first minibatch."""
    metrics = {name: jnp.mean(values) for name, values in stacked.items()}
    max_errors = stacked["ratio/max_error"]
    return metrics | {"ratio/max_error": jnp.max(max_errors), "ratio/first_max_error": max_errors[0, 0]}


def _shuffle(batch: PyTree, key: jax.Array, num_minibatches: int) -> PyTree:
    """Leaves `[N, ...]` in random order as `[num_minibatches, N / num_minibatches, ...]`."""
    size = jax.tree.leaves(batch)[0].shape[0]
    order = random_order(key, size).reshape(num_minibatches, size // num_minibatches)
    return jax.tree.map(lambda x: x[order], batch)
