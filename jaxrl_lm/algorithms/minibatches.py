"""Several epochs of shuffled minibatches over a batch, used by PPO, PQN and the group policies.

The gradient of a minibatch may be computed in micro-batches, which need less memory and add up. Losses are therefore
sums over rows, with weights that `normalize` computes for the whole minibatch. A mean of the micro-batches' means would
give tokens of short completions more weight. Rows of different lengths are dealt out, so that micro-batches have about
the same number of tokens: all of them take the time and memory of the fullest.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxrl_lm.core.masked import masked_mean
from jaxrl_lm.core.shuffling import random_order
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.partition import join, split
from jaxrl_lm.types import ActionEvaluation, Evaluate, Metrics, PyTree

MinibatchLoss = Callable[[PyTree, PyTree], tuple[jax.Array, Metrics]]
"""`loss(params, rows) -> (loss, metrics)`, which add up over the rows of a minibatch, except `MAXIMA`."""

RowLengths = Callable[[PyTree], jax.Array]
"""`row_lengths(rows) -> [N]`: what a row adds to the size of a micro-batch, such as its number of tokens."""

MAXIMA = frozenset({"ratio/max_error"})
"""Metrics that are maxima over rows, at least 0."""

IS_APPLIED = "minibatches/applied"
"""Metric of `run_epochs` with early stopping: 1 for a minibatch that was applied, 0 for one that was skipped."""


def _unchanged(minibatch: PyTree) -> PyTree:
    return minibatch


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
    micro_batch_size: int | None = None,
    normalize: Callable[[PyTree], PyTree] = _unchanged,
    row_lengths: RowLengths | None = None,
    should_stop: Callable[[Metrics], jax.Array] | None = None,
) -> tuple[tuple[PyTree, PyTree], Metrics]:
    """Take one gradient step per minibatch; every epoch shuffles the batch again.

    Args:
        loss: loss of parameters and rows of a normalized minibatch.
        carry: parameters, and the optimizer's state for those that are trained (`models.partition`).
        batch: leaves `[N, ...]`; `num_minibatches` divides N.
        key: PRNG key of the shuffling.
        optimizer: computes the step's direction.
        learning_rate: multiplies the direction.
        num_epochs: passes over the batch.
        num_minibatches: steps per epoch.
        micro_batch_size: rows per forward and backward pass; divides N / num_minibatches. None for all at once.
        normalize: maps a minibatch to itself with what depends on all of its rows, such as weights of a mean.
        row_lengths: of a minibatch; micro-batches get about the same sum. None takes rows as they come.
        should_stop: maps a minibatch's metrics, before its step, to whether this minibatch and all later ones are
            skipped. They are still computed, since shapes are static.

    Returns:
        Parameters and optimizer state, and the metrics of all steps, `[num_epochs, num_minibatches]`.
    """
    trained, frozen = split(carry[0])

    def of_trained(params: PyTree, rows: PyTree) -> tuple[jax.Array, Metrics]:
        return loss(join(params, frozen), rows)

    gradient = partial(_gradient, of_trained, size=micro_batch_size, row_lengths=row_lengths)

    def step(carry: tuple[PyTree, PyTree, jax.Array], minibatch: PyTree) -> tuple[tuple[PyTree, ...], Metrics]:
        params, opt_state, is_stopped = carry
        grads, metrics = gradient(params, normalize(minibatch))
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


def _gradient(
    loss: MinibatchLoss, params: PyTree, minibatch: PyTree, *, size: int | None, row_lengths: RowLengths | None
) -> tuple[PyTree, Metrics]:
    """Gradient and metrics of a minibatch, `size` rows at a time."""
    gradient = jax.grad(loss, has_aux=True)
    if size is None or size == _num_rows(minibatch):
        return gradient(params, minibatch)

    def add(total: tuple[PyTree, Metrics], rows: PyTree) -> tuple[tuple[PyTree, Metrics], None]:
        grads, metrics = gradient(params, rows)
        combined = {
            name: (jnp.maximum if name in MAXIMA else jnp.add)(total[1][name], value) for name, value in metrics.items()
        }
        return (jax.tree.map(lambda old, new: old + new.astype(old.dtype), total[0], grads), combined), None

    if row_lengths is not None:
        order = balanced_order(row_lengths(minibatch), size)
        minibatch = jax.tree.map(lambda x: x[order], minibatch)
    parts = _in_parts(minibatch, size)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def evaluate_in_parts(evaluate: Evaluate, size: int | None, row_lengths: RowLengths) -> Evaluate:
    """`evaluate` for a whole batch that is too large for one forward pass.

    Args:
        evaluate: of the policy.
        size: rows per forward pass; divides those of the batch. None for all at once.
        row_lengths: of observations.
    """

    def in_parts(params: PyTree, observations: PyTree, actions: PyTree) -> ActionEvaluation:
        if size is None or size == _num_rows(actions):
            return evaluate(params, observations, actions)
        order = balanced_order(row_lengths(observations), size)
        rows = jax.tree.map(lambda x: x[order], (observations, actions))
        results = jax.lax.map(lambda part: evaluate(params, *part), _in_parts(rows, size))
        back = jnp.argsort(order)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], results)

    return in_parts


def _num_rows(rows: PyTree) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


def _in_parts(rows: PyTree, size: int) -> PyTree:
    """Leaves `[N, ...]` as `[N / size, size, ...]`."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // size, size, *x.shape[1:]), rows)


def balanced_order(lengths: jax.Array, size: int) -> jax.Array:
    """An order in which each `size` rows in turn have about the same sum of lengths, int32 `[N]`.

    Rows are dealt out by length, longest first, forth and back, as players choose teams.

    Args:
        lengths: `[N]`.
        size: rows of a part; divides N.
    """
    rounds = jnp.argsort(-lengths, stable=True).reshape(size, -1)
    is_back = jnp.arange(size) % 2 == 1
    return jnp.where(is_back[:, None], rounds[:, ::-1], rounds).T.reshape(-1)


def check_micro_batches(size: int | None, num_rows: int, unit: str, *, prefix: str = "") -> None:
    """Check that micro-batches divide a minibatch.

    Args:
        size: rows of a micro-batch.
        num_rows: rows of a minibatch.
        unit: what a row is, for the message.
        prefix: of the option's name.

    Raises:
        InputError: they do not.
    """
    if size is not None and num_rows % size:
        raise InputError(
            f"{prefix}micro_batch_size={size} does not divide the {num_rows} {unit} of a minibatch; "
            f"choose a divisor of {num_rows}"
        )


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


def forward_rows(
    key: jax.Array, lengths: jax.Array, num_epochs: int, num_minibatches: int, micro_batch_size: int | None
) -> list[jax.Array]:
    """The rows of each forward pass of an update, arrays `[..., rows of a pass]`: of scoring and of `run_epochs`.

    Args:
        key: of the update.
        lengths: of the rows of the batch, `[N]`.
        num_epochs: passes over the batch.
        num_minibatches: divides N.
        micro_batch_size: rows per pass; None for whole batches and minibatches.
    """

    def passes(rows: jax.Array) -> jax.Array:
        size = micro_batch_size or len(rows)
        return (rows if size == len(rows) else rows[balanced_order(lengths[rows], size)]).reshape(-1, size)

    size = len(lengths)
    learned = minibatch_rows(key, size, num_epochs, num_minibatches).reshape(num_epochs * num_minibatches, -1)
    return [passes(jnp.arange(size, dtype=jnp.int32)), jnp.concatenate([passes(rows) for rows in learned])]
