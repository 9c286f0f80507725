"""Schedules of settings over a run. Values are traced, so sweeps over them can be vmapped.

Lengths are shares of the run, so they scale with it. Learners read the run's length from `anneal_updates`, which the
trainers fill in.
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
    """Schedule of a setting, as a factor of its value.

    Attributes:
        kind: "constant", or a "linear" or "cosine" decay from 1 to `end`.
        end: factor at the end of the run.
        warmup_fraction: initial share of the run over which the factor rises linearly from 0 to 1.
    """

    kind: ScheduleKind = "constant"
    end: float = 0.0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        checks.one_of(self, kind=ScheduleKind)
        checks.between(self, 0, 1, "end")
        checks.fraction(self, "warmup_fraction")

    @property
    def is_constant(self) -> bool:
        """Whether the factor is 1 throughout."""
        return not self.warmup_fraction and (self.kind == "constant" or self.end == 1)


def schedule_factor(config: ScheduleConfig, progress: Scalar) -> Float[Array, ""]:
    """Factor of a schedule at a point of the run.

    With progress p, warm-up w and `q = (p - w) / (1 - w)`:

        p < w       p / w
        constant    1
        linear      1 - (1 - end) q
        cosine      end + (1 - end) (1 + cos(pi q)) / 2

    Args:
        config: the schedule.
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
        config: its schedule.
        num_updates: updates done.
        anneal_updates: updates of the whole run; 0 or None keeps the setting constant.
    """
    if not anneal_updates:
        return value
    return value * schedule_factor(config, run_share(num_updates, anneal_updates))


def annealed(rate: Float[Array, ""], num_updates: Int[Array, ""], anneal_updates: int | None) -> Float[Array, ""]:
    """A learning rate that falls linearly to 0 over `anneal_updates` updates; 0 or None keeps it."""
    return scheduled(rate, ScheduleConfig(kind="linear"), num_updates, anneal_updates)


def run_share(num_updates: Num[Array, "*S"], anneal_updates: int | None) -> Float[Array, "*S"]:
    """Share of the run that is done, in [0, 1]; 1 if the length is not given (None or 0)."""
    share = jnp.asarray(num_updates, jnp.float32) / (anneal_updates or 1)
    return jnp.clip(share, 0.0, 1.0) if anneal_updates else jnp.ones_like(share)


def linear_schedule(
    progress: Num[Array, "*S"] | int | float, start: Scalar, end: Scalar, fraction: Scalar
) -> Float[Array, "*S"]:
    """Linear schedule, constant after its end: `start + (end - start) * min(progress / fraction, 1)`.

    Args:
        progress: share of the run that is done.
        start: value at the start of the run.
        end: value after `fraction` of the run; throughout if `fraction` is 0.
        fraction: length of the schedule, as a share of the run.

    Returns:
        The value at `progress`, float32.
    """
    fraction = jnp.asarray(fraction, jnp.float32)
    share = jnp.where(fraction > 0, progress / jnp.where(fraction > 0, fraction, 1.0), 1.0)
    share = jnp.clip(share, 0.0, 1.0)
    # A value that stays must not depend on the share by rounding: the length of a run would change its numbers.
    return jnp.where(start == end, end, (1.0 - share) * start + share * end)


def exploration(hyperparams: Any, progress: Num[Array, "*S"]) -> Float[Array, "*S"]:
    """`linear_schedule` of a Q-learner's `epsilon_start`, `epsilon_end` and `epsilon_fraction`."""
    return linear_schedule(progress, hyperparams.epsilon_start, hyperparams.epsilon_end, hyperparams.epsilon_fraction)


def has_constant_exploration(config: Any) -> bool:
    """Whether `exploration` is the same throughout a run with a Q-learner's settings."""
    return config.epsilon_start == config.epsilon_end or not config.epsilon_fraction


def follows_length(config: Any) -> bool:
    """Whether settings of an algorithm change over the length of the run.

    That is so where one of its schedules is not constant (`has_schedule`), unless their length is given in updates
    (`anneal_updates`).
    """
    return config.anneal_updates is None and config.has_schedule


def visit_schedule(
    learning_rate: Scalar, num_new: Num[Array, "*B"], num_visits: Int[Array, "*B"], power: Scalar
) -> Float[Array, "*B"]:
    """Step size that falls with the visits of an entry: `learning_rate * (num_new / num_visits)^power`.

    With power 0 it is constant. With learning rate 1 and power 1, an entry that moves towards the mean of its new
    targets is the mean of all its targets. Q-learning converges with a power above 1/2 and at most 1.

    Args:
        learning_rate: step size at the first visit of an entry.
        num_new: new visits, at least 1; or the sum of their weights.
        num_visits: visits so far, including the new ones.
        power: how fast the step size falls.

    Returns:
        Step size of each entry, float32.

    Reference: Even-Dar and Mansour, 2003, Learning Rates for Q-learning.
    """
    return learning_rate * (jnp.asarray(num_new, jnp.float32) / num_visits.astype(jnp.float32)) ** power
