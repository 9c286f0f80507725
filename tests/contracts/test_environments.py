"""What every environment in `ENVS` must do, and gymnax's behind the same functions."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.envs import MaskedObservation, StepResult, make, reset_batch, step_batch
from jaxrl_lm.envs.registry import ENVS
from jaxrl_lm.types import PyTree

NUM_ENVS, NUM_STEPS, TIME_LIMIT = 8, 7, 3
KEY = jax.random.key(5)
RESET_KEY, ACTION_KEY, STEP_KEY = jax.random.split(KEY, 3)
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "Maze-v0": [
        {"size": 7, "num_levels": 8},
        {"layout": "medium", "observation": "grid", "reward": "shaped", "has_action_mask": True},
        {"layout": "umaze", "observation": "window", "reward": "sparse", "window_size": 3},
    ],
    "ChainMaze-v0": [{}],
    "TextMaze-v0": [{"observed": "partially"}],
    "FrozenLake-text": [{"num_levels": 8, "turns": 10_000}],
    "Sokoban-text": [{"num_levels": 8, "turns": 10_000}],
    "FrozenLake-v0": [
        {"num_levels": 8},
        {"size": 5, "num_levels": 8, "frozen_probability": 0.8, "is_slippery": True, "observation": "grid"},
    ],
    "Sokoban-v0": [{"num_levels": 8}, {"size": 7, "num_levels": 8, "min_solution": 2, "max_solution": 8}],
    "CartPole-v1": [{}],
    "FourRooms-misc": [{}],
    "Pendulum-v1": [{}],
    "Breakout-MinAtar": [{}],
}
CASES = [
    pytest.param(env_id, number, id=f"{env_id}-{number}")
    for env_id, settings in SETTINGS.items()
    for number in range(len(settings))
]
OURS = [case for case in CASES if case.values[0] in ENVS]
every_case_of_ours = pytest.mark.parametrize(("env_id", "number"), OURS)
every_case = pytest.mark.parametrize(("env_id", "number"), CASES)


class Step(NamedTuple):
    """What went into a step and what came out."""

    key: jax.Array
    observations: PyTree
    states: PyTree
    actions: jax.Array
    result: StepResult


@cache
def build(env_id: str, number: int) -> tuple[Any, Any]:
    """An environment, and its parameters with a short time limit."""
    env, params = make(env_id, **SETTINGS[env_id][number])
    return env, params.replace(max_steps_in_episode=TIME_LIMIT)


@cache
def jitted_step(env_id: str, number: int) -> Any:
    return jax.jit(partial(step_batch, build(env_id, number)[0]))


@cache
def jitted_reset(env_id: str, number: int) -> Any:
    return jax.jit(partial(reset_batch, build(env_id, number)[0]), static_argnums=1)


@cache
def rollout(env_id: str, number: int) -> list[Step]:
    """Random actions over two time limits and one step more."""
    env, params = build(env_id, number)
    observations, states = jitted_reset(env_id, number)(RESET_KEY, NUM_ENVS, params)
    steps = []
    for index in range(NUM_STEPS):
        action_keys = jax.random.split(jax.random.fold_in(ACTION_KEY, index), NUM_ENVS)
        actions = jax.vmap(env.action_space(params).sample)(action_keys)
        key = jax.random.fold_in(STEP_KEY, index)
        result = jitted_step(env_id, number)(key, states, actions, params)
        # What is looked into in numpy, which is quicker; what steps again as it is, lest it be compiled again.
        steps.append(Step(key, jax.device_get(observations), states, actions, jax.device_get(result)))
        observations, states = result.observations, result.states
    return steps


def assert_same(actual: PyTree, expected: PyTree, tolerance: float = 0.0) -> None:
    """Equal structures of equal leaves; floats to a relative and absolute tolerance."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def differs(one: PyTree, other: PyTree) -> np.ndarray:
    """In which environments two batches of observations differ, `[B]`."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return np.any([np.any((np.array(a) != np.array(b)).reshape(NUM_ENVS, -1), axis=1) for a, b in leaves], axis=0)


def row(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def seen(observations: PyTree) -> PyTree:
    return observations.observation if isinstance(observations, MaskedObservation) else observations


def test_every_environment_of_ours_is_tested():
    assert set(ENVS) <= set(SETTINGS)


@every_case
def test_spaces_contain_observations_and_actions(env_id, number):
    env, params = build(env_id, number)
    steps = rollout(env_id, number)
    shown = [seen(one) for step in steps for one in (step.observations, step.result.final_observations)]
    for space, values in (
        (env.observation_space(params), np.stack(shown)),
        (env.action_space(params), np.stack([step.actions for step in steps])),
    ):
        assert values.shape[1:] == (NUM_ENVS, *space.shape)
        assert jax.vmap(jax.vmap(space.contains))(values).all()
        if env_id in ENVS:
            assert values.dtype == space.dtype


@every_case
def test_flags_are_bools_and_rewards_finite_floats(env_id, number):
    for step in rollout(env_id, number):
        result = step.result
        assert result.terminated.dtype == result.truncated.dtype == bool
        assert result.rewards.dtype == np.float32
        assert result.rewards.shape == result.terminated.shape == result.truncated.shape == (NUM_ENVS,)
        assert np.isfinite(result.rewards).all()


@every_case
def test_the_time_limit_truncates_and_does_not_terminate(env_id, number):
    is_cut = []
    for step in rollout(env_id, number):
        np.testing.assert_array_equal(step.result.truncated, step.states.time + 1 >= TIME_LIMIT)
        is_cut.append(np.array(step.result.truncated & ~step.result.terminated))
    assert np.any(is_cut[TIME_LIMIT - 1])


@every_case
def test_what_ended_is_reset_at_once_and_the_rest_goes_on(env_id, number):
    for step in rollout(env_id, number):
        is_done = np.array(step.result.terminated | step.result.truncated)
        np.testing.assert_array_equal(step.result.states.time, np.where(is_done, 0, step.states.time + 1))


@every_case
def test_final_observations_differ_from_observations_at_an_episodes_end_only(env_id, number):
    changed, done = [], []
    for step in rollout(env_id, number):
        done.append(np.array(step.result.terminated | step.result.truncated))
        changed.append(differs(step.result.observations, step.result.final_observations))
    assert np.any(changed)
    assert not np.any(np.array(changed) & ~np.array(done))


@every_case
def test_the_same_key_gives_the_same_result(env_id, number):
    _, params = build(env_id, number)
    step = rollout(env_id, number)[TIME_LIMIT - 1]
    again = jitted_step(env_id, number)(step.key, step.states, step.actions, params)
    assert_same(again, step.result)
    reset = jitted_reset(env_id, number)
    assert_same(*(reset(RESET_KEY, NUM_ENVS, params) for _ in range(2)))


@every_case_of_ours
def test_a_compiled_step_is_the_step_not_compiled(env_id, number):
    env, params = build(env_id, number)
    step = rollout(env_id, number)[TIME_LIMIT - 1]
    with jax.disable_jit():
        plain = step_batch(env, step.key, step.states, step.actions, params)
    assert_same(plain, step.result, tolerance=1e-6)


@every_case
def test_a_batch_steps_as_its_environments_do_one_by_one(env_id, number):
    env, params = build(env_id, number)
    for step in rollout(env_id, number)[TIME_LIMIT - 2 : TIME_LIMIT]:
        keys = jax.random.split(step.key, NUM_ENVS)
        states, actions = jax.device_get((step.states, step.actions))
        for index in range(NUM_ENVS):
            observation, state, reward, terminated, truncated, info = env.step(
                keys[index], row(states, index), actions[index], params
            )
            batched = row(step.result, index)
            flags_and_ends = (reward, terminated, truncated, info["final_observation"])
            expected = (batched.rewards, batched.terminated, batched.truncated, batched.final_observations)
            assert_same(flags_and_ends, expected, tolerance=1e-6)
            if not (terminated or truncated):
                assert_same((observation, state), (batched.observations, batched.states), tolerance=1e-6)


@every_case
def test_step_env_returns_natural_termination_only(env_id, number):
    env, params = build(env_id, number)
    first = rollout(env_id, number)[0]
    step_env = jax.jit(jax.vmap(env.step_env, (0, 0, 0, None)))
    keys = jax.random.split(first.key, NUM_ENVS)
    early = step_env(keys, first.states, first.actions, params)
    at_the_limit = first.states.replace(time=first.states.time + TIME_LIMIT - 1)
    late = step_env(keys, at_the_limit, first.actions, params)
    np.testing.assert_array_equal(late[3], early[3])
    assert not late[3].all()
    assert jax.vmap(env.is_truncated, (0, None))(late[1], params).all()


@every_case_of_ours
def test_episodes_of_ours_come_to_their_own_end(env_id, number):
    env, params = build(env_id, number)
    params = params.replace(max_steps_in_episode=10_000)

    def walk(states: PyTree, key: jax.Array) -> tuple[PyTree, tuple[jax.Array, jax.Array]]:
        action_key, step_key = jax.random.split(key)
        actions = jax.random.randint(action_key, (NUM_ENVS,), 0, env.num_actions)
        if hasattr(env, "answer_table"):
            actions = jnp.asarray(env.answer_table())[actions]
        result = step_batch(env, step_key, states, actions, params)
        return result.states, (result.terminated, result.truncated)

    _, states = reset_batch(env, RESET_KEY, NUM_ENVS, params)
    _, (terminated, truncated) = jax.jit(partial(jax.lax.scan, walk))(states, jax.random.split(STEP_KEY, 1000))
    assert terminated.any()
    assert not truncated.any()
