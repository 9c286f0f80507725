"""Returns and lengths of episodes, kept while environments are stepped."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxrl_lm.core.counters import CompensatedSum, add_to_sum, value_of, zero_sum
from jaxrl_lm.types import NO_BATCH_AXIS, Metrics, PyTree


@struct.dataclass(kw_only=True)
class EpisodeTracker:
    """Running episodes of B environments, and sums over those that ended since the sums were taken.

    Attributes:
        returns: undiscounted reward of each running episode, a compensated sum of `[B]`.
        lengths: its steps, int32 `[B]`.
        return_sum: over ended episodes, a compensated scalar sum.
        length_sum: over ended episodes, a compensated scalar sum; steps of many long episodes pass int32's range.
        terminated_sum: how many of them came to their own end, int32 scalar.
        count: ended episodes, int32 scalar.
    """

    returns: CompensatedSum
    lengths: PyTree
    return_sum: CompensatedSum
    length_sum: CompensatedSum
    terminated_sum: PyTree
    count: PyTree


def init_tracker(num_envs: int) -> EpisodeTracker:
    """Environments that have just been reset."""
    return EpisodeTracker(returns=zero_sum((num_envs,)), lengths=jnp.zeros(num_envs, jnp.int32), **_empty_sums())


def track(
    tracker: EpisodeTracker, rewards: Float[Array, " B"], terminated: Bool[Array, " B"], truncated: Bool[Array, " B"]
) -> EpisodeTracker:
    """Count one step of each environment."""
    is_done = terminated | truncated
    returns, lengths = add_to_sum(tracker.returns, rewards), tracker.lengths + 1
    ended_return = jnp.sum(jnp.where(is_done, value_of(returns), 0.0))
    ended_length = jnp.sum(jnp.where(is_done, lengths.astype(jnp.float32), 0.0))
    return EpisodeTracker(
        returns=jax.tree.map(lambda x: jnp.where(is_done, 0.0, x), returns),
        lengths=jnp.where(is_done, 0, lengths),
        return_sum=add_to_sum(tracker.return_sum, ended_return),
        length_sum=add_to_sum(tracker.length_sum, ended_length),
        terminated_sum=tracker.terminated_sum + jnp.sum(terminated, dtype=jnp.int32),
        count=tracker.count + jnp.sum(is_done, dtype=jnp.int32),
    )


def take_metrics(tracker: EpisodeTracker) -> tuple[EpisodeTracker, Metrics]:
    """Means over the episodes that ended since the last call (NaN if none did), and the tracker with empty sums."""
    count = tracker.count.astype(jnp.float32)
    metrics: dict[str, jax.Array] = {
        "episode/return": value_of(tracker.return_sum) / count,
        "episode/length": value_of(tracker.length_sum) / count,
        "episode/terminated": tracker.terminated_sum.astype(jnp.float32) / count,
        "episode/count": count,
    }
    return replace(tracker, **_empty_sums()), metrics


def tracker_axes(tracker: EpisodeTracker) -> EpisodeTracker:
    """The axis of each leaf along which the environments are, or `NO_BATCH_AXIS`."""
    axes: EpisodeTracker = jax.tree.map(lambda _: NO_BATCH_AXIS, tracker)
    return replace(axes, returns=CompensatedSum(0, 0), lengths=0)  # pyright: ignore[reportArgumentType]


def _empty_sums() -> dict[str, PyTree]:
    return {
        "return_sum": zero_sum(),
        "length_sum": zero_sum(),
        "terminated_sum": jnp.zeros((), jnp.int32),
        "count": jnp.zeros((), jnp.int32),
    }
