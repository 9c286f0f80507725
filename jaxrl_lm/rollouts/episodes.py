"""Returns and lengths of episodes, kept while environments are stepped."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_lm.core.counters import CompensatedSum, add_to_sum, zero_sum
from jaxrl_lm.core.records import record
from jaxrl_lm.types import Metrics, PyTree


@record
class EpisodeTracker:
    """Running episodes of B environments, and sums over those that ended since metrics were taken.

    A step adds to plain sums of each environment, so it holds no reduction and little work; `take_metrics` adds them up
    and carries the returns of episodes that go on into a compensated sum. So a return is as exact as a float32 sum of
    one update's steps, however many updates the episode lasts.

    Attributes:
        returns: undiscounted reward of each running episode until metrics were taken, a compensated sum of `[B]`; of no
            meaning where an episode ended since.
        recent: its reward since then, float32 `[B]`.
        lengths: its steps, int32 `[B]`.
        return_sum: over ended episodes, float32 `[B]`.
        length_sum: over ended episodes, int32 `[B]`.
        terminated_sum: how many of them came to their own end, int32 `[B]`.
        count: ended episodes, int32 `[B]`.
    """

    returns: CompensatedSum
    recent: PyTree
    lengths: PyTree
    return_sum: PyTree
    length_sum: PyTree
    terminated_sum: PyTree
    count: PyTree


def init_tracker(num_envs: int) -> EpisodeTracker:
    """Environments that have just been reset."""
    lengths = jnp.zeros(num_envs, jnp.int32)
    return EpisodeTracker(returns=zero_sum((num_envs,)), lengths=lengths, **_empty_sums(num_envs))


def track(
    tracker: EpisodeTracker, rewards: Float[Array, " B"], terminated: Bool[Array, " B"], truncated: Bool[Array, " B"]
) -> EpisodeTracker:
    """Count one step of each environment."""
    is_done = terminated | truncated
    recent, lengths = tracker.recent + rewards, tracker.lengths + 1
    # The first episode that ends since metrics were taken began before; its small terms are added up first.
    since_reset = jnp.where(tracker.count == 0, tracker.returns.total + (tracker.returns.error + recent), recent)
    return EpisodeTracker(
        returns=tracker.returns,
        recent=jnp.where(is_done, 0.0, recent),
        lengths=jnp.where(is_done, 0, lengths),
        return_sum=tracker.return_sum + jnp.where(is_done, since_reset, 0.0),
        length_sum=tracker.length_sum + jnp.where(is_done, lengths, 0),
        terminated_sum=tracker.terminated_sum + terminated.astype(jnp.int32),
        count=tracker.count + is_done.astype(jnp.int32),
    )


def take_metrics(tracker: EpisodeTracker) -> tuple[EpisodeTracker, Metrics]:
    """Means over the episodes that ended since the last call (NaN if none did), and the tracker with empty sums."""
    sums = (tracker.return_sum, tracker.length_sum, tracker.terminated_sum, tracker.count)
    # As floats: the lengths of many long episodes pass the range of int32.
    returns, lengths, terminated, count = (jnp.sum(x.astype(jnp.float32)) for x in sums)
    metrics: dict[str, jax.Array] = {
        "episode/return": returns / count,
        "episode/length": lengths / count,
        "episode/terminated": terminated / count,
        "episode/count": count,
    }
    kept = jax.tree.map(lambda x: jnp.where(tracker.count > 0, 0.0, x), tracker.returns)
    num_envs = tracker.lengths.shape[0]
    return replace(tracker, returns=add_to_sum(kept, tracker.recent), **_empty_sums(num_envs)), metrics


def _empty_sums(num_envs: int) -> dict[str, PyTree]:
    # Zeros of their own for each: one buffer could not be donated twice.
    floats = {name: jnp.zeros(num_envs, jnp.float32) for name in ("recent", "return_sum")}
    return floats | {name: jnp.zeros(num_envs, jnp.int32) for name in ("length_sum", "terminated_sum", "count")}
