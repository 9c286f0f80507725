"""How settings change over the course of a run; values are traced, so that sweeps over them vmap.

Lengths are shares of the run, so a schedule needs no change where the run gets longer. A learner reads the run's length
from `anneal_updates`, which the trainers fill in.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxrl_lm import checks

Scalar = Num[Array, ""] | int | float
ScheduleKind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How a setting changes over a run, as a factor of its value.

    Attributes:
        kind: "constant", or along a "linear" or "cosine" curve from 1 down to `end`.
        end: the factor at the end of the run.
        warmup_fraction: share of the run over which the factor first rises linearly from 0 to 1.
    """

    kind: ScheduleKind = "constant"
    end: float = 0.0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        checks.one_of(self, kind=ScheduleKind)
        checks.between(self, 0, 1, "end")
        checks.fraction(self, "warmup_fraction")


def schedule_factor(config: ScheduleConfig, progress: Scalar) -> Float[Array, ""]:
    """The factor at a point of the run.

    With progress p, warm-up w and `q = (p - w) / (1 - w)`:

        p < w       p / w
        constant    1
        linear      1 - (1 - end) q
        cosine      end + (1 - end) (1 + cos(pi q)) / 2

    Args:
        config: the curve.
        progress: p, from 0 at the start of the run to 1 at its end.

    Returns:
        A factor from 0 to 1, float32.

    Reference: Loshchilov and Hutter, 2017, SGDR: Stochastic Gradient Descent with Warm Restarts (cosine).
    """
    progress = jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
    warmup = config.warmup_fraction
    share = jnp.maximum(progress - warmup, 0.0) / (1.0 - warmup)
    remaining = {"constant": jnp.ones_like(share), "linear": 1.0 - share, "cosine": 0.5 + 0.5 * jnp.cos(jnp.pi * share)}
    end = 1.0 if config.kind == "constant" else config.end
    factor = end + (1.0 - end) * remaining[config.kind]
    return jnp.where(progress < warmup, progress / warmup, factor) if warmup else factor


def scheduled(
    value: Float[Array, ""], config: ScheduleConfig, num_updates: Int[Array, ""], anneal_updates: int | None
) -> Float[Array, ""]:
    """A setting after some updates: `value * schedule_factor(num_updates / anneal_updates)`.

    Args:
        value: the setting.
        config: its curve.
        num_updates: updates made so far.
        anneal_updates: updates of the whole run; 0 or None leaves the setting as it is.
    """
    if not anneal_updates:
        return value
    return value * schedule_factor(config, run_share(num_updates, anneal_updates))


def annealed(rate: Float[Array, ""], num_updates: Int[Array, ""], anneal_updates: int | None) -> Float[Array, ""]:
    """A learning rate that falls linearly to 0 over `anneal_updates` updates; 0 or None keeps it."""
    return scheduled(rate, ScheduleConfig(kind="linear"), num_updates, anneal_updates)


def run_share(num_updates: Num[Array, "*S"], anneal_updates: int | None) -> Float[Array, "*S"]:
    """Share of the run that is done, in [0, 1]; 1 where its length is not known (None or 0)."""
    share = jnp.asarray(num_updates, jnp.float32) / (anneal_updates or 1)
    return jnp.clip(share, 0.0, 1.0) if anneal_updates else jnp.ones_like(share)


def linear_schedule(
    progress: Num[Array, "*S"] | int | float, start: Scalar, end: Scalar, fraction: Scalar
) -> Float[Array, "*S"]:
    """A straight line that stays where it ends: `start + (end - start) * min(progress / fraction, 1)`.

    Args:
        progress: share of the run that is done.
        start: value at the start of the run.
        end: value from `fraction` of the run on; from the start where `fraction` is 0.
        fraction: length of the line, as a share of the run.

    Returns:
        The value at `progress`, float32.
    """
    fraction = jnp.asarray(fraction, jnp.float32)
    share = jnp.where(fraction > 0, progress / jnp.where(fraction > 0, fraction, 1.0), 1.0)
    share = jnp.clip(share, 0.0, 1.0)
    return (1.0 - share) * start + share * end


def exploration(hyperparams: Any, progress: Num[Array, "*S"]) -> Float[Array, "*S"]:
    """`linear_schedule` of a Q-learner's `epsilon_start`, `epsilon_end` and `epsilon_fraction`."""
    return linear_schedule(progress, hyperparams.epsilon_start, hyperparams.epsilon_end, hyperparams.epsilon_fraction)


def visit_schedule(
    learning_rate: Scalar, num_new: Num[Array, "*B"], num_visits: Int[Array, "*B"], power: Scalar
) -> Float[Array, "*B"]:
    """A step size that falls with the visits of an entry: `learning_rate * (num_new / num_visits)^power`.

    With power 0 it is constant. With learning rate and power 1 and an entry moved towards the mean of its new targets,
    the entry is the mean of all its targets. With a power above 1/2, at most 1, Q-learning converges.

    Args:
        learning_rate: step size of an entry's first visit.
        num_new: visits that are learned from now, at least 1; or a sum of their weights.
        num_visits: visits so far, the new ones included.
        power: how fast the step size falls.

    Returns:
        Step size of each entry, float32.

    Reference: Even-Dar and Mansour, 2003, Learning Rates for Q-learning.
    """
    return learning_rate * (jnp.asarray(num_new, jnp.float32) / num_visits.astype(jnp.float32)) ** power
