"""Rollouts in environments against a loop over single steps, and the table of discounts, traces and next values."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces

from jaxrl_lm.core.counters import value_of
from jaxrl_lm.core.returns import generalized_advantages
from jaxrl_lm.envs import step_batch
from jaxrl_lm.envs.base import BatchEnvironment
from jaxrl_lm.rollouts import agent_policy, environments
from jaxrl_lm.rollouts.agent_policy import PolicyConfig, make_policy
from jaxrl_lm.rollouts.environments import Normalizers
from jaxrl_lm.types import PyTree

DISCOUNT, TRACE = 0.9, 0.8
NUM_ENVS, NUM_STEPS = 5, 17


@struct.dataclass
class WalkState(environment.EnvState):
    """Steps made and the place reached."""

    place: PyTree = 0


class Walk(BatchEnvironment):
    """Two ways: action 1 goes on and ends the episode at place 3, action 0 stays; a time limit cuts after 4 steps."""

    @property
    def default_params(self) -> environment.EnvParams:
        return environment.EnvParams(max_steps_in_episode=4)

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: Any) -> WalkState:
        place = jax.random.randint(key, shape, 0, 2)
        return WalkState(time=jnp.zeros(shape, jnp.int32), place=place)  # pyright: ignore[reportArgumentType]

    def transition(self, state: WalkState, action: jax.Array, params: Any) -> tuple[WalkState, jax.Array]:
        place = state.place + action
        return WalkState(time=state.time + 1, place=place), 10.0 * state.place + action

    def is_terminated(self, state: WalkState, params: Any) -> jax.Array:
        return state.place >= 3

    def observation(self, state: WalkState, params: Any) -> jax.Array:
        return jnp.stack([state.place, state.time]).astype(jnp.float32)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(2)

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(0.0, 5.0, (2,), jnp.float32)


ENV = Walk()
PARAMS = ENV.default_params


MEMORIES = [(0, "gru"), (6, "gru"), (6, "lstm")]


def rollout(config: PolicyConfig, *, key: int = 0, normalizers: Normalizers | None = None) -> Any:
    policy = make_policy(config, ENV, PARAMS)
    params = policy.init(jax.random.key(1))
    start = environments.start_rollout(ENV, policy, jax.random.key(2), NUM_ENVS, PARAMS)
    # A window from the middle of episodes, with a memory that is not empty.
    run = jax.jit(partial(environments.collect, ENV, policy, num_steps=NUM_STEPS, discount=DISCOUNT, trace_decay=TRACE))
    normalizers = normalizers or Normalizers()
    start, _, _ = run(params, PARAMS, start, jax.random.key(3), normalizers)
    end, trajectory, seen_by = run(params, PARAMS, start, jax.random.key(key), normalizers)
    return policy, params, start, end, trajectory, seen_by


def replay(start: Any, actions: np.ndarray, key: jax.Array) -> list[Any]:
    """The same steps one by one with the recorded actions, from the environment's own functions."""
    states, results = start.acting.env_states, []
    for step_key, column in zip(jax.random.split(key, NUM_STEPS), actions.T, strict=True):
        _, env_key = jax.random.split(step_key)
        results.append(step_batch(ENV, env_key, states, jnp.asarray(column), PARAMS))
        states = results[-1].states
    return results


@pytest.mark.parametrize(("memory_size", "memory"), MEMORIES)
def test_a_rollout_is_a_loop_over_steps(memory_size: int, memory: Any):
    policy, params, start, end, trajectory, _ = rollout(PolicyConfig(memory_size=memory_size, memory=memory))
    results = replay(start, np.asarray(trajectory.actions), jax.random.key(0))
    terminated, truncated = (np.stack([np.asarray(r[i]) for r in results], 1) for i in (3, 4))
    assert terminated.any()
    assert (truncated & ~terminated).any()
    np.testing.assert_array_equal(trajectory.rewards, np.stack([np.asarray(r.rewards) for r in results], 1))
    np.testing.assert_allclose(trajectory.discounts, np.where(terminated, 0, DISCOUNT), rtol=1e-6)
    np.testing.assert_allclose(trajectory.traces, np.where(terminated | truncated, 0, TRACE), rtol=1e-6)
    np.testing.assert_array_equal(end.acting.observations, results[-1].observations)

    memory, is_first, observations = start.memory, start.is_first, start.acting.observations
    for step, result in enumerate(results):
        values = policy.value(params, observations, is_first, memory)
        np.testing.assert_allclose(trajectory.values[:, step], values, rtol=1e-5, atol=1e-6)
        if memory_size:
            _, memory = policy.best(params, observations, is_first, memory)
        is_first = result.terminated | result.truncated
        observations = result.observations
        following = policy.value(params, observations, is_first, memory)
        final = policy.value(params, result.final_observations, jnp.zeros_like(is_first), memory)
        expected = np.where(is_first, final, following)
        is_alive = ~terminated[:, step]
        found = np.asarray(trajectory.next_values)[:, step]
        np.testing.assert_allclose(found[is_alive], expected[is_alive], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("memory_size", "memory"), MEMORIES)
def test_evaluate_gives_the_log_probs_and_values_of_acting(memory_size: int, memory: Any):
    policy, params, _, _, trajectory, _ = rollout(PolicyConfig(memory_size=memory_size, memory=memory))
    evaluation = jax.jit(policy.evaluate)(params, trajectory.observations, trajectory.actions)
    np.testing.assert_allclose(evaluation.log_probs, trajectory.log_probs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(evaluation.values, trajectory.values, rtol=1e-5, atol=1e-6)
    assert np.all((np.asarray(evaluation.entropies) > 0) & (np.asarray(evaluation.entropies) <= np.log(2) + 1e-6))


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_memory_is_forgotten_where_an_episode_begins(memory: Any):
    policy, params, _, _, trajectory, _ = rollout(PolicyConfig(memory_size=6, memory=memory))
    seen = trajectory.observations
    first = np.argwhere(np.asarray(seen.is_first)[:, 1:])[0] + [0, 1]
    row, step = int(first[0]), int(first[1])

    def values_after(noise: float) -> np.ndarray:
        blurred = seen.observations.at[row, :step].add(noise)
        observations = agent_policy.RememberedObservations(
            observations=blurred, is_first=seen.is_first, memory=seen.memory + noise
        )
        return np.asarray(policy.evaluate(params, observations, trajectory.actions).values)[row]

    np.testing.assert_array_equal(values_after(0.0)[step:], values_after(3.0)[step:])
    assert np.any(values_after(0.0)[:step] != values_after(3.0)[:step])


def test_advantages_stop_at_ends_and_cuts():
    *_, trajectory, _ = rollout(PolicyConfig())
    advantages = np.asarray(
        generalized_advantages(
            trajectory.rewards,
            trajectory.values,
            trajectory.next_values,
            trajectory.discounts,
            trajectory.traces,
            trajectory.mask,
        )
    )
    is_last = np.asarray(trajectory.traces) == 0
    one_step = np.asarray(trajectory.rewards + trajectory.discounts * trajectory.next_values - trajectory.values)
    np.testing.assert_allclose(advantages[is_last], one_step[is_last], rtol=1e-5, atol=1e-5)


def test_episode_sums_are_those_of_the_steps():
    _, _, start, end, trajectory, _ = rollout(PolicyConfig())
    before, after = start.acting.tracker, end.acting.tracker
    returns, lengths = (
        np.asarray(value_of(before.returns) * (before.count == 0) + before.recent).copy(),
        np.asarray(before.lengths).copy(),
    )
    found_returns, found_lengths = [], []
    for step in range(NUM_STEPS):
        returns += np.asarray(trajectory.rewards)[:, step]
        lengths += 1
        for env in np.flatnonzero(np.asarray(trajectory.traces)[:, step] == 0):
            found_returns.append(returns[env])
            found_lengths.append(lengths[env])
            returns[env] = lengths[env] = 0
    assert int(jnp.sum(after.count - before.count)) == len(found_returns)
    found = float(jnp.sum(after.return_sum - before.return_sum))
    assert found == pytest.approx(sum(found_returns), rel=1e-5)
    assert int(jnp.sum(after.length_sum - before.length_sum)) == sum(found_lengths)


def test_normalizers_stay_within_a_rollout_and_have_seen_it_afterwards():
    normalizers = environments.init_normalizers(ENV, PARAMS, observations=True, rewards=True)
    *_, plain, _ = rollout(PolicyConfig())
    *_, trajectory, seen_by = rollout(PolicyConfig(), normalizers=normalizers)
    raw = np.asarray(plain.observations)
    # The first moments are 0 and 1, so this rollout's observations and rewards are the raw ones.
    np.testing.assert_allclose(trajectory.observations, raw, rtol=1e-5)
    np.testing.assert_allclose(trajectory.rewards, plain.rewards, rtol=1e-5)
    assert seen_by.observations is not None
    assert seen_by.rewards is not None
    np.testing.assert_allclose(seen_by.observations.mean, raw.reshape(-1, 2).mean(0), rtol=1e-3)
    assert float(seen_by.rewards.count) == pytest.approx(NUM_ENVS * NUM_STEPS, rel=1e-3)


def test_actions_differ_from_step_to_step_and_from_rollout_to_rollout():
    *_, first, _ = rollout(PolicyConfig(), key=0)
    *_, second, _ = rollout(PolicyConfig(), key=7)
    assert np.any(np.asarray(first.actions) != np.asarray(second.actions))
    assert len({tuple(column) for column in np.asarray(first.actions).T}) > 1


def test_what_few_steps_need_is_not_computed_where_no_seed_needs_it():
    """`cond` would: under vmap it computes both branches at every step."""
    calls = []

    def compute() -> jax.Array:
        jax.debug.callback(lambda: calls.append(1), ordered=False)
        return jnp.ones(3)

    run = jax.jit(jax.vmap(lambda is_needed: environments.where_any(is_needed, compute)))
    none = np.asarray(run(jnp.zeros((2, 3), bool)))
    jax.effects_barrier()
    assert not calls
    one_seed = np.asarray(run(jnp.array([[False] * 3, [False, True, False]])))
    jax.effects_barrier()
    assert calls
    np.testing.assert_array_equal(none, np.zeros((2, 3)))
    np.testing.assert_array_equal(one_seed, [[0, 0, 0], [1, 1, 1]])
