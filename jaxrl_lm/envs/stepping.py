"""Stepping a batch of environments, ours and gymnax's, with one call. Imports no gymnax, which takes seconds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm.core.records import record
from jaxrl_lm.types import PyTree


class StepResult(NamedTuple):
    """One step of a batch of environments; those that ended are reset already.

    Attributes:
        observations: observations after resets, leaves `[B, ...]`.
        states: states of the environments, leaves `[B, ...]`.
        rewards: float32 `[B]`.
        terminated: whether the episode terminated, bool `[B]`.
        truncated: whether a time limit cut it, bool `[B]`; if both hold, termination counts.
        final_observations: observations after the step, before any reset, leaves `[B, ...]`.
    """

    observations: PyTree
    states: PyTree
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_observations: PyTree


@record
class MaskedObservation:
    """An observation with a mask of the legal actions.

    Attributes:
        observation: what is seen, leaves `[..., ...]`.
        action_mask: whether each action of a discrete space is legal, bool `[..., A]`; at least one is.
    """

    observation: PyTree
    action_mask: PyTree


class BatchSteps:
    """Interface for resetting and stepping a batch at once; `BatchEnvironment` derives from it."""

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: Any) -> Any:
        """States of new episodes, leaves `[*shape, ...]`, from one key."""
        raise NotImplementedError

    def transition(self, state: Any, action: jax.Array, params: Any) -> tuple[Any, jax.Array]:
        """The state after an action and its reward, for one environment."""
        raise NotImplementedError

    def observation(self, state: Any, params: Any) -> Any:
        """What the agent sees of a state."""
        raise NotImplementedError


def reset_batch(env: Any, key: jax.Array, num_envs: int, params: Any) -> tuple[PyTree, PyTree]:
    """Observations and states of `num_envs` new episodes of any gymnax environment."""
    if isinstance(env, BatchSteps):
        states = env.initial_states(key, (num_envs,), params)
        return jax.vmap(env.observation, (0, None))(states, params), states
    observations, states = jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), params)
    return _narrow(observations), states


def step_batch(env: Any, key: jax.Array, states: PyTree, actions: jax.Array, params: Any) -> StepResult:
    """Step a batch of any gymnax environment and reset what ended.

    Args:
        env: the environment.
        key: for transitions and resets.
        states: leaves `[B, ...]`.
        actions: `[B, ...]`.
        params: shared by the batch.
    """
    if isinstance(env, BatchSteps):
        return _step_ours(env, key, states, actions, params)
    keys = jax.random.split(key, jax.tree.leaves(states)[0].shape[0])
    observations, states, rewards, terminated, truncated, info = jax.vmap(env.step, (0, 0, 0, None))(
        keys, states, as_action(actions), params
    )
    # An environment's flags may be Python's or of another type; one form for all.
    return StepResult(
        observations=_narrow(observations),
        states=states,
        rewards=jnp.asarray(rewards, jnp.float32),
        terminated=jnp.asarray(terminated, bool),
        truncated=jnp.asarray(truncated, bool),
        final_observations=_narrow(info["final_observation"]),
    )


def as_action(action: jax.Array) -> jax.Array:
    """An action in JAX's default type if it is floating point: gymnax's states are in that type."""
    is_floating = jnp.issubdtype(action.dtype, jnp.floating)
    return action.astype(jnp.result_type(float)) if is_floating else action


def _narrow(observations: PyTree) -> Any:
    """Observations in 32 bits where an environment made them in JAX's default type and JAX_ENABLE_X64 widened it."""
    narrow = {jnp.dtype(jnp.float64): jnp.float32, jnp.dtype(jnp.int64): jnp.int32}
    return jax.tree.map(lambda x: x.astype(narrow.get(x.dtype, x.dtype)), observations)


def _step_ours(env: Any, key: jax.Array, states: PyTree, actions: jax.Array, params: Any) -> StepResult:
    stepped, rewards = jax.vmap(env.transition, (0, 0, None))(states, actions, params)
    terminated = jax.vmap(env.is_terminated, (0, None))(stepped, params)
    truncated = jax.vmap(env.is_truncated, (0, None))(stepped, params)
    is_done = terminated | truncated
    fresh = env.initial_states(key, is_done.shape, params)

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_done.reshape(is_done.shape + (1,) * (old.ndim - 1)), new, old)

    states = jax.tree.map(pick, fresh, stepped)
    observe = jax.vmap(env.observation, (0, None))
    return StepResult(
        observations=observe(states, params),
        states=states,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        final_observations=observe(stepped, params),
    )
