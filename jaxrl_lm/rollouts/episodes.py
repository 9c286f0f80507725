"""Returns and lengths of episodes, kept while environments are stepped."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxrl_lm.types import Metrics, PyTree


@struct.dataclass(kw_only=True)
class EpisodeTracker:
    """Running episodes of B environments, and sums over those that ended since the sums were taken.

    Attributes:
        returns: undiscounted reward of each running episode, float32 `[B]`.
        lengths: its steps, int32 `[B]`.
        return_sum: over ended episodes, float32 scalar.
        length_sum: over ended episodes, int32 scalar.
        terminated_sum: how many of them came to their own end, int32 scalar.
        count: ended episodes, int32 scalar.
    """

    returns: PyTree
    lengths: PyTree
    return_sum: PyTree
    length_sum: PyTree
    terminated_sum: PyTree
    count: PyTree


def init_tracker(num_envs: int) -> EpisodeTracker:
    """Environments that have just been reset."""
    zero = jnp.zeros((), jnp.int32)
    return EpisodeTracker(
        returns=jnp.zeros(num_envs, jnp.float32),
        lengths=jnp.zeros(num_envs, jnp.int32),
        return_sum=jnp.zeros((), jnp.float32),
        length_sum=zero,
        terminated_sum=zero,
        count=zero,
    )


def track(
    tracker: EpisodeTracker, rewards: Float[Array, " B"], terminated: Bool[Array, " B"], truncated: Bool[Array, " B"]
) -> EpisodeTracker:
    """Count one step of each environment."""
    is_done = terminated | truncated
    returns, lengths = tracker.returns + rewards, tracker.lengths + 1
    return EpisodeTracker(
        returns=jnp.where(is_done, 0.0, returns),
        lengths=jnp.where(is_done, 0, lengths),
        return_sum=tracker.return_sum + jnp.sum(jnp.where(is_done, returns, 0.0)),
        length_sum=tracker.length_sum + jnp.sum(jnp.where(is_done, lengths, 0)),
        terminated_sum=tracker.terminated_sum + jnp.sum(terminated, dtype=jnp.int32),
        count=tracker.count + jnp.sum(is_done, dtype=jnp.int32),
    )


def take_metrics(tracker: EpisodeTracker) -> tuple[EpisodeTracker, Metrics]:
    """Means over the episodes that ended since the last call (NaN if none did), and the tracker with empty sums."""
    count = tracker.count.astype(jnp.float32)
    metrics: dict[str, jax.Array] = {
        "episode/return": tracker.return_sum / count,
        "episode/length": tracker.length_sum / count,
        "episode/terminated": tracker.terminated_sum / count,
        "episode/count": count,
    }
    zero = jnp.zeros((), jnp.int32)
    fresh = tracker.replace(  # pyright: ignore[reportAttributeAccessIssue]
        return_sum=jnp.zeros((), jnp.float32), length_sum=zero, terminated_sum=zero, count=zero
    )
    return fresh, metrics
