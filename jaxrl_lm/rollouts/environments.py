"""Trajectories from parallel environments: one scan, transposed once to `[B, T]`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm.core import running_moments
from jaxrl_lm.core.records import record
from jaxrl_lm.core.running_moments import RunningMoments
from jaxrl_lm.envs.stepping import MaskedObservation, StepResult
from jaxrl_lm.rollouts.acting import ActingState, start_acting, step_acting
from jaxrl_lm.rollouts.agent_policy import Decision, Policy, RememberedObservations
from jaxrl_lm.types import PyTree, Trajectory


@record
class RolloutState:
    """State of B environments and the policy's memory.

    Attributes:
        acting: state of the environments.
        is_first: whether the current observations start an episode, bool `[B]`.
        memory: memory of the policy, `[B, M]`, or None.
        discounted_returns: running discounted return of each episode, float32 `[B]`, used to normalise rewards.
    """

    acting: ActingState
    is_first: PyTree
    memory: PyTree
    discounted_returns: PyTree


@record
class Normalizers:
    """Running moments for normalisation; None where normalisation is off.

    Attributes:
        observations: moments of observations, with the shape of one observation.
        rewards: scalar moments of discounted returns.
    """

    observations: RunningMoments | None = None
    rewards: RunningMoments | None = None


def start_rollout(env: Any, policy: Policy, key: jax.Array, num_envs: int, env_params: Any) -> RolloutState:
    """Reset the environments and the memory."""
    return RolloutState(
        acting=start_acting(env, key, num_envs, env_params),
        is_first=jnp.ones(num_envs, bool),
        memory=policy.init_memory(num_envs),
        discounted_returns=jnp.zeros(num_envs, jnp.float32),
    )


def collect(
    env: Any,
    policy: Policy,
    params: PyTree,
    env_params: Any,
    state: RolloutState,
    key: jax.Array,
    normalizers: Normalizers,
    *,
    num_steps: int,
    discount: jax.Array | float,
    trace_decay: jax.Array | float,
) -> tuple[RolloutState, Trajectory, Normalizers]:
    """Collect T = `num_steps` steps in B environments.

    A terminal step has discount 0 and trace 0. A truncated step keeps its discount, bootstraps from
    V(final_observation), and has trace 0.

    Args:
        env: any gymnax environment.
        policy: policy and value function.
        params: parameters of the policy.
        env_params: parameters of the environments.
        state: environments and memory.
        key: PRNG key of actions, transitions and resets.
        normalizers: moments of the last update; constant during the rollout, so that the ratio starts at 1.
        num_steps: T.
        discount: gamma.
        trace_decay: lambda.

    Returns:
        The state after the rollout, the trajectory with leaves `[B, T, ...]`, and the updated normalizers.
    """
    start = state

    def step(
        carry: tuple[RolloutState, Normalizers], step_key: jax.Array
    ) -> tuple[tuple[RolloutState, Normalizers], _Step]:
        state, seen_by = carry
        act_key, env_key = jax.random.split(step_key)
        seen = normalize_observations(state.acting.observations, normalizers)
        decision = policy.act(params, seen, state.is_first, state.memory, act_key)
        acting, result = step_acting(env, env_key, state.acting, policy.to_env(decision.actions), env_params)
        final_values = _final_values(policy, params, result, decision, normalizers)
        discounted = state.discounted_returns * discount + result.rewards
        is_done = result.terminated | result.truncated
        record = _Step(
            observations=seen,
            is_first=state.is_first,
            decision=decision._replace(memory=None),
            rewards=result.rewards,
            terminated=result.terminated,
            is_done=is_done,
            final_values=final_values,
        )
        new = RolloutState(
            acting=acting,
            is_first=is_done,
            memory=decision.memory,
            discounted_returns=jnp.where(is_done, 0.0, discounted),
        )
        return (new, _update_normalizers(seen_by, state.acting.observations, discounted)), record

    (state, seen_by), steps = jax.lax.scan(step, (state, normalizers), jax.random.split(key, num_steps))
    last_seen = normalize_observations(state.acting.observations, normalizers)
    last = policy.value(params, last_seen, state.is_first, state.memory)
    trajectory = _trajectory(policy, start, steps, last, normalizers, discount=discount, trace_decay=trace_decay)
    return state, trajectory, seen_by


class _Step(NamedTuple):
    """Output of each step, stacked to `[T, B, ...]`; without the environment's `info`."""

    observations: PyTree
    is_first: jax.Array
    decision: Decision
    rewards: jax.Array
    terminated: jax.Array
    is_done: jax.Array
    final_values: jax.Array


def _final_values(
    policy: Policy, params: PyTree, result: StepResult, decision: Decision, normalizers: Normalizers
) -> jax.Array:
    """V(final_observation) of truncated episodes, 0 elsewhere; computed only if there is one."""
    is_cut = result.truncated & ~result.terminated

    def value() -> jax.Array:
        seen = normalize_observations(result.final_observations, normalizers)
        return jnp.where(is_cut, policy.value(params, seen, jnp.zeros_like(is_cut), decision.memory), 0.0)

    return where_any(is_cut, value)


def where_any(is_needed: jax.Array, compute: Callable[[], jax.Array]) -> jax.Array:
    """`compute()`, float32 `[B]`, if any of `is_needed` `[B]` holds, else zeros.

    A loop with at most one iteration: under `vmap` over seeds, `cond` would compute both branches.
    """
    carry = jnp.any(is_needed), jnp.zeros(is_needed.shape, jnp.float32)
    return jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros((), bool), compute()), carry)[1]


def _trajectory(
    policy: Policy,
    start: RolloutState,
    steps: _Step,
    last_values: jax.Array,
    normalizers: Normalizers,
    *,
    discount: jax.Array | float,
    trace_decay: jax.Array | float,
) -> Trajectory:
    values = steps.decision.values
    following = jnp.concatenate([values[1:], last_values[None]])
    observations = _batch_first(steps.observations)
    scalars = {
        "actions": steps.decision.actions,
        "log_probs": steps.decision.log_probs,
        "values": values,
        "rewards": _normalize_rewards(steps.rewards, normalizers),
        "discounts": jnp.where(steps.terminated, 0.0, discount),
        "traces": jnp.where(steps.is_done, 0.0, trace_decay),
        "next_values": jnp.where(steps.is_done, steps.final_values, following),
        "mask": jnp.ones_like(values),
        "value_mask": jnp.ones_like(values),
    }
    if policy.has_memory:
        observations = RememberedObservations(
            observations=observations, is_first=_batch_first(steps.is_first), memory=start.memory
        )
    return Trajectory(observations=observations, **_batch_first(scalars))


def _batch_first(tree: PyTree) -> Any:
    """Leaves `[T, B, ...]` as `[B, T, ...]`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def init_normalizers(env: Any, env_params: Any, *, observations: bool, rewards: bool) -> Normalizers:
    """Initial moments."""
    return Normalizers(
        observations=running_moments.init_moments(env.observation_space(env_params).shape) if observations else None,
        rewards=running_moments.init_moments(()) if rewards else None,
    )


def normalize_observations(observations: PyTree, normalizers: Normalizers) -> Any:
    """Observations as the policy sees them."""
    moments = normalizers.observations
    if moments is None:
        return observations
    if isinstance(observations, MaskedObservation):
        inner = running_moments.standardize(observations.observation, moments)
        return MaskedObservation(observation=inner, action_mask=observations.action_mask)
    return running_moments.standardize(observations, moments)


def _normalize_rewards(rewards: jax.Array, normalizers: Normalizers) -> jax.Array:
    """Divide rewards by the standard deviation of discounted returns, without centering them."""
    if normalizers.rewards is None:
        return rewards
    return rewards * jax.lax.rsqrt(normalizers.rewards.variance + 1e-8)


def _update_normalizers(normalizers: Normalizers, observations: PyTree, discounted_returns: jax.Array) -> Normalizers:
    """Update the moments with one step of B environments."""
    of_observations, of_rewards = normalizers.observations, normalizers.rewards
    if of_observations is not None:
        raw = observations.observation if isinstance(observations, MaskedObservation) else observations
        of_observations = running_moments.update_moments(of_observations, raw.astype(jnp.float32))
    if of_rewards is not None:
        of_rewards = running_moments.update_moments(of_rewards, discounted_returns)
    return Normalizers(observations=of_observations, rewards=of_rewards)
