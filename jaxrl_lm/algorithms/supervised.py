"""Supervised learning: AdamW on the mean loss of a batch, with warm-up, decay and gradient accumulation.

The loss function defines examples and their losses (`algorithms/sft.py`, `algorithms/dpo.py`). Each update is

    g = grad( sum of all losses / sum of all weights ),  clipped by its global norm
    p <- p - rate * (Adam(g) + weight_decay * p)          the decay on matrices only

where the sums run over the whole accumulated batch, so every token has the same weight.

Reference: Loshchilov and Hutter, 2017, Decoupled Weight Decay Regularization.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_lm import checks
from jaxrl_lm.core.counters import next_count
from jaxrl_lm.core.records import record
from jaxrl_lm.models.partition import join, split, trained
from jaxrl_lm.types import Metrics, PyTree, SupervisedLearner

ScheduleKind = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW and its learning rate schedule.

    Attributes:
        learning_rate: peak learning rate, reached at the end of the warm-up.
        schedule: decay to 0 after the warm-up: "cosine", "linear", or none ("constant").
        warmup_fraction: share of the updates over which the learning rate rises linearly.
        weight_decay: weight decay of matrices, multiplied by the learning rate; vectors (norms, biases) do not decay.
        b1: decay of Adam's first moment.
        b2: decay of Adam's second moment.
        epsilon: Adam's epsilon, added to the root of the second moment.
        max_grad_norm: largest global norm of the gradient; 0 disables clipping.
    """

    learning_rate: float = 2e-5
    schedule: ScheduleKind = "cosine"
    warmup_fraction: float = 0.03
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        checks.one_of(self, schedule=ScheduleKind)
        checks.above(self, 0, "learning_rate", "epsilon")
        checks.finite(self, "learning_rate", "epsilon", "weight_decay")
        checks.at_least(self, 0, "weight_decay", "max_grad_norm")
        checks.fraction(self, "warmup_fraction", "b1", "b2")

    def follows_length(self) -> bool:
        """Whether the learning rate depends on the length of the run, which then cannot change."""
        return self.schedule != "constant" or self.warmup_fraction > 0


@record
class SupervisedHyperparams:
    """Settings that are traced: a sweep over them is a vmap over states.

    Attributes:
        learning_rate: float32 scalar.
        weight_decay: float32 scalar.
        max_grad_norm: float32 scalar.
        loss: hyperparameters of the loss function, any pytree.
    """

    learning_rate: PyTree
    weight_decay: PyTree
    max_grad_norm: PyTree
    loss: PyTree


@record
class SupervisedState:
    """State of supervised learning.

    Attributes:
        params: parameters of the model.
        optimizer: Adam's moments of the trained parameters (`models.partition`).
        num_updates: updates done, int32 scalar.
        hyperparams: traced settings.
    """

    params: PyTree
    optimizer: PyTree
    num_updates: PyTree
    hyperparams: SupervisedHyperparams


class LossSums(NamedTuple):
    """Sums over a batch, so that accumulated batches add up.

    Attributes:
        loss: sum of the losses.
        weight: divisor of the sums: the number of tokens or examples.
        metrics: sums of further metrics by name; their means are reported.
    """

    loss: jax.Array
    weight: jax.Array
    metrics: Metrics


LossFunction = Callable[[PyTree, PyTree, PyTree], LossSums]
"""`loss(params, batch, hyperparams.loss) -> LossSums`."""


def make_supervised(
    config: AdamWConfig, loss: LossFunction, *, num_updates: int, loss_hyperparams: PyTree = None
) -> SupervisedLearner:
    """`init` and `update` for a loss.

    Args:
        config: settings; those in `SupervisedHyperparams` become part of the state.
        loss: sums of losses over a batch.
        num_updates: length of the learning rate schedule.
        loss_hyperparams: traced hyperparameters of the loss function.

    Returns:
        The algorithm. `update` returns scalar metrics: `loss/total`, `loss/grad_norm` before clipping,
        `learning_rate`, and the means of the loss function's metrics.
    """
    optimizer = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)
    schedule = rate_schedule(config, num_updates)

    def init(params: PyTree) -> SupervisedState:
        names = ("learning_rate", "weight_decay", "max_grad_norm")
        traced = {name: jnp.asarray(getattr(config, name), jnp.float32) for name in names}
        return SupervisedState(
            params=params,
            optimizer=optimizer.init(trained(params)),
            num_updates=jnp.zeros((), jnp.int32),
            hyperparams=SupervisedHyperparams(
                **traced, loss=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), loss_hyperparams)
            ),
        )

    def update(state: SupervisedState, batch: PyTree) -> tuple[SupervisedState, Metrics]:
        traced = state.hyperparams
        grads, metrics = mean_gradient(loss, state.params, batch, traced.loss)
        grads, grad_norm = _clip(grads, traced.max_grad_norm)
        params, frozen = split(state.params)
        direction, opt_state = optimizer.update(grads, state.optimizer, params)
        rate = traced.learning_rate * schedule(state.num_updates)

        def step(param: jax.Array, towards: jax.Array) -> jax.Array:
            decay = traced.weight_decay * param if param.ndim >= 2 else 0.0
            return (param - rate * (towards + decay)).astype(param.dtype)

        new = replace(
            state,
            params=join(jax.tree.map(step, params, direction), frozen),
            optimizer=opt_state,
            num_updates=next_count(state.num_updates),
        )
        return new, metrics | {"loss/grad_norm": grad_norm, "learning_rate": rate}

    return SupervisedLearner(init=init, update=update, loss=loss)


def rate_schedule(config: AdamWConfig, num_updates: int) -> optax.Schedule:
    """Learning rate at update k as a share of the peak: `(k + 1) / (w + 1)` in a warm-up of w updates, then a decay
    that reaches 0 at `num_updates`, one past the last update."""
    num_warmup = round(config.warmup_fraction * num_updates)
    num_falling = max(1, num_updates - num_warmup)
    after = {
        "cosine": optax.cosine_decay_schedule(1.0, num_falling),
        "linear": optax.linear_schedule(1.0, 0.0, num_falling),
        "constant": optax.constant_schedule(1.0),
    }[config.schedule]
    if not num_warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(1 / (num_warmup + 1), 1.0, num_warmup), after], [num_warmup])


def mean_gradient(
    loss: LossFunction, params: PyTree, batch: PyTree, loss_hyperparams: PyTree
) -> tuple[PyTree, Metrics]:
    """Gradient and metrics of the mean loss, accumulated over the parts of a batch.

    Args:
        loss: sums of losses over `[B, ...]`.
        params: parameters of the model.
        batch: leaves `[num_accumulated, B, ...]`.
        loss_hyperparams: hyperparameters of the loss function.

    Returns:
        The gradient of the trained parameters in float32, and the means of the metrics with `loss/total`.
    """
    params, frozen = split(params)

    def summed(params: PyTree, part: PyTree) -> tuple[jax.Array, LossSums]:
        sums = loss(join(params, frozen), part, loss_hyperparams)
        return sums.loss, sums

    def accumulate(carry: PyTree, part: PyTree) -> tuple[PyTree, None]:
        grads, sums = jax.grad(summed, has_aux=True)(params, part)
        return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), carry, (grads, sums)), None

    first = jax.tree.map(lambda x: x[0], batch)
    zeros = (params, jax.eval_shape(lambda *given: summed(*given)[1], params, first))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), zeros)
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, batch)
    weight = jnp.where(sums.weight > 0, sums.weight, 1.0)
    metrics = {"loss/total": sums.loss} | sums.metrics
    return jax.tree.map(lambda g: g / weight, grads), {name: total / weight for name, total in metrics.items()}


def _clip(grads: PyTree, max_norm: jax.Array) -> tuple[PyTree, jax.Array]:
    """Clip the gradient to a global norm of `max_norm` (0 disables); also return its norm before clipping."""
    norm = optax.tree.norm(grads)
    is_long = (max_norm > 0) & (norm > max_norm)
    scale = jnp.where(is_long, max_norm / jnp.where(is_long, norm, 1.0), 1.0)
    return jax.tree.map(lambda g: g * scale, grads), norm
