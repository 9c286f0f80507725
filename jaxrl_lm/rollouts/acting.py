"""State of parallel environments during training: environment states, observations and episode statistics."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_lm.core.records import record
from jaxrl_lm.envs.stepping import StepResult, reset_batch, step_batch
from jaxrl_lm.rollouts import episodes
from jaxrl_lm.rollouts.episodes import EpisodeTracker
from jaxrl_lm.types import NO_BATCH_AXIS, Metrics, PyTree


@record
class ActingState:
    """B environments that an agent acts in.

    Attributes:
        env_states: leaves `[B, ...]`.
        observations: current observations, as returned by the environment, leaves `[B, ...]`.
        tracker: returns and lengths of episodes.
    """

    env_states: PyTree
    observations: PyTree
    tracker: EpisodeTracker


def start_acting(env: Any, key: jax.Array, num_envs: int, env_params: Any) -> ActingState:
    """Reset the environments."""
    observations, env_states = reset_batch(env, key, num_envs, env_params)
    return ActingState(
        env_states=env_states,
        # A copy: if an observation is a field of the state, the same buffer would be donated twice.
        observations=jax.tree.map(jnp.copy, observations),
        tracker=episodes.init_tracker(num_envs),
    )


def step_acting(
    env: Any, key: jax.Array, acting: ActingState, actions: jax.Array, env_params: Any
) -> tuple[ActingState, StepResult]:
    """Step every environment once, reset those that ended, and track the episodes.

    Args:
        env: any gymnax environment.
        key: PRNG key of transitions and resets.
        acting: state of the environments.
        actions: environment actions, `[B, ...]`.
        env_params: shared by the batch.
    """
    result = step_batch(env, key, acting.env_states, actions, env_params)
    stepped = ActingState(
        env_states=result.states,
        observations=result.observations,
        tracker=episodes.track(acting.tracker, result.rewards, result.terminated, result.truncated),
    )
    return stepped, result


def take_episode_metrics(acting: ActingState) -> tuple[ActingState, Metrics]:
    """`episode/...` metrics of the episodes that ended since the last call, and the state without them."""
    tracker, metrics = episodes.take_metrics(acting.tracker)
    return replace(acting, tracker=tracker), metrics


def fill_axes(tree: PyTree, axis: int = NO_BATCH_AXIS) -> Any:
    """The same axis for every leaf: 0 for an `ActingState`, whose leaves are all `[B, ...]`."""
    return jax.tree.map(lambda _: axis, tree)
