"""Track the returns and lengths of episodes while environments are stepped."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_lm.core.counters import CompensatedSum, add_to_sum, zero_sum
from jaxrl_lm.core.records import record
from jaxrl_lm.types import Metrics, PyTree


@record
class EpisodeTracker:
    """Running episodes of B environments, and sums over those that ended since the last `take_metrics`.

    A step only adds to per-environment sums, without reductions. `take_metrics` reduces them and carries the returns of
    running episodes into a compensated sum, so a return is as exact as a float32 sum over the steps of one update,
    however many updates the episode lasts.

    Attributes:
        returns: undiscounted return of each running episode up to the last `take_metrics`, a compensated sum of `[B]`;
            meaningless if an episode ended since.
        recent: return since then, float32 `[B]`.
        lengths: steps of the running episode, int32 `[B]`.
        return_sum: sum over ended episodes, float32 `[B]`.
        length_sum: sum over ended episodes, int32 `[B]`.
        terminated_sum: number of terminated episodes, int32 `[B]`.
        count: number of ended episodes, int32 `[B]`.
    """

    returns: CompensatedSum
    recent: PyTree
    lengths: PyTree
    return_sum: PyTree
    length_sum: PyTree
    terminated_sum: PyTree
    count: PyTree


def init_tracker(num_envs: int) -> EpisodeTracker:
    """Tracker of environments that have just been reset."""
    lengths = jnp.zeros(num_envs, jnp.int32)
    return EpisodeTracker(returns=zero_sum((num_envs,)), lengths=lengths, **_empty_sums(num_envs))


def track(
    tracker: EpisodeTracker, rewards: Float[Array, " B"], terminated: Bool[Array, " B"], truncated: Bool[Array, " B"]
) -> EpisodeTracker:
    """Count one step of each environment."""
    is_done = terminated | truncated
    recent, lengths = tracker.recent + rewards, tracker.lengths + 1
    # The first episode to end started before the last `take_metrics`; its small terms are added first.
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
    # As floats: the total length of many long episodes can overflow int32.
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
    # Separate zeros for each field: one buffer cannot be donated twice.
    floats = {name: jnp.zeros(num_envs, jnp.float32) for name in ("recent", "return_sum")}
    return floats | {name: jnp.zeros(num_envs, jnp.int32) for name in ("length_sum", "terminated_sum", "count")}
