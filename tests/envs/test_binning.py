"""Binned spaces against numpy's digitize, and in the environments they wrap."""

import itertools
import math

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.envs import make, reset_batch, step_batch
from jaxrl_lm.envs.binning import BinnedEnvironment, BinningConfig, action_value, state_number
from jaxrl_lm.errors import InputError

KEY = jax.random.key(0)


def wrap(env_id: str, **options) -> tuple[BinnedEnvironment, object]:
    env, params = make(env_id)
    return BinnedEnvironment(env, params, BinningConfig(**options)), params


def test_the_number_of_a_state_by_hand():
    edges = ((0.0,), (1.0, 2.0))  # 2 bins and 3 bins: number = 3 * first + second
    observations = {(-1.0, 0.0): 0, (-1.0, 1.0): 1, (-1.0, 9.0): 2, (0.0, -9.0): 3, (5.0, 1.5): 4, (5.0, 2.0): 5}
    for observation, number in observations.items():
        assert int(state_number(jnp.array(observation), edges)) == number


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_numbers_agree_with_digitize_and_ravel(data):
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    edges = tuple(tuple(np.sort(np.linspace(-1, 1, n + 1)[1:-1]).astype(np.float32).tolist()) for n in counts)
    value = st.floats(-2, 2, width=32) | st.sampled_from([0.0, 0.5, -0.5, math.inf, -math.inf])
    observation = np.array([data.draw(value) for _ in counts], np.float32)
    bins = [
        int(np.digitize(x, np.array(axis, np.float32))) if axis else 0
        for x, axis in zip(observation, edges, strict=True)
    ]
    assert int(state_number(jnp.asarray(observation), edges)) == np.ravel_multi_index(bins, counts)


def test_action_numbers_run_through_every_combination_with_the_last_axis_fastest():
    moves = ((-1.0, 1.0), (0.0, 0.5, 1.0))
    values = [tuple(action_value(jnp.int32(number), moves).tolist()) for number in range(6)]
    assert values == list(itertools.product(*moves))


def test_binned_pendulum_turns_the_torque_that_its_action_stands_for():
    env, params = wrap("Pendulum-v1", num_bins=(4, 4, 8), num_actions=3)
    assert env.num_actions == env.action_space(params).n == 3
    assert env.observation_space(params).n == 128
    inner = gymnax.make("Pendulum-v1")[0]
    _, state = env.reset(KEY, params)
    for action, torque in enumerate((-2.0, 0.0, 2.0)):
        number, stepped, reward, *_ = env.step(KEY, state, action, params)
        seen, expected, expected_reward, *_ = inner.step(KEY, state, jnp.array([torque]), params)
        assert reward == expected_reward
        assert stepped.theta == expected.theta
        edges = [np.linspace(-1, 1, 5)[1:-1], np.linspace(-1, 1, 5)[1:-1], np.linspace(-8, 8, 9)[1:-1]]
        bins = [np.digitize(x, axis) for x, axis in zip(np.array(seen), edges, strict=True)]
        assert int(number) == np.ravel_multi_index(bins, (4, 4, 8))


def test_actions_alone_can_be_binned():
    env, params = wrap("Pendulum-v1", num_actions=3)
    inner = gymnax.make("Pendulum-v1")[0]
    assert env.observation_space(params).shape == (3,)
    _, state = env.reset(KEY, params)
    np.testing.assert_array_equal(
        env.step(KEY, state, 2, params)[0], inner.step(KEY, state, jnp.array([2.0]), params)[0]
    )


def test_observations_alone_can_be_binned():
    env, params = wrap("Pendulum-v1", num_bins=4)
    assert env.observation_space(params).n == 64
    assert env.action_space(params).shape == (1,)


def test_given_bounds_stand_in_for_those_that_the_space_lacks():
    env, params = wrap("CartPole-v1", num_bins=(1, 2, 6, 2), low=(None, -1.0, None, -2.0), high=(None, 1.0, None, 2.0))
    assert env.observation_space(params).n == 24
    _, state = env.reset(KEY, params)
    state = state.replace(x=0.0, x_dot=0.5, theta=0.0, theta_dot=-9.0)
    # Bins 0 of 1, 1 of 2, 3 of 6 (an edge lies at 0), 0 of 2 (below the bound).
    assert int(env.observe(KEY, state, None, params)) == (1 * 6 + 3) * 2


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("MountainCar-v0", {"num_bins": 12}),
        ("MountainCarContinuous-v0", {"num_bins": (6, 5), "num_actions": 7}),
        ("FourRooms-misc", {"num_bins": 11}),
    ],
)
def test_batches_step_as_the_environment_inside_does_and_reset_at_the_time_limit(env_id, options):
    env, params = wrap(env_id, **options)
    params = params.replace(max_steps_in_episode=3)
    observations, states = jax.jit(lambda key: reset_batch(env, key, 4, params))(KEY)
    step = jax.jit(lambda key, states, actions: step_batch(env, key, states, actions, params))
    space = env.observation_space(params)
    for number in range(1, 7):
        assert bool(jnp.all(space.contains(observations)))
        result = step(jax.random.fold_in(KEY, number), states, jnp.arange(4) % env.num_actions)
        observations, states = result.observations, result.states
        assert observations.dtype == jnp.int32
        np.testing.assert_array_equal(result.truncated, np.full(4, number % 3 == 0))
        assert not result.terminated.any()
        assert bool(jnp.all(space.contains(result.final_observations)))


def test_equal_wrappers_are_equal_so_that_programs_are_not_compiled_twice():
    env, params = make("MountainCar-v0")
    first, second = (BinnedEnvironment(env, params, BinningConfig(num_bins=5)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != BinnedEnvironment(env, params, BinningConfig(num_bins=6))


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("CartPole-v1", {"num_bins": 4}, r"observation axis 1 has no bound \(low\[1\]=.*give low\[1\]"),
        ("CartPole-v1", {"num_bins": 4, "low": (None, -1.0, None, -1.0)}, r"axis 1 has no bound \(high\[1\]"),
        ("MountainCar-v0", {"num_bins": 4, "low": (0.0,)}, r"low=\(0.0,\) names 1 axes, but the observation has 2"),
        ("MountainCar-v0", {"num_bins": 4, "low": (1.0, 0.0)}, "axis 0: low=1 must be less than high=0.6"),
        ("MountainCar-v0", {"num_bins": 0}, "num_bins=0 must be at least 1"),
        ("MountainCar-v0", {"num_bins": (3, 3, 3)}, "num_bins=.* names 3 axes, but there are 2"),
        ("Pendulum-v1", {"num_actions": 1}, "num_actions=1 must be at least 2"),
        ("Breakout-MinAtar", {"num_bins": 10}, r"num_bins=10 over 400 axes makes about 10\^400 combinations"),
        ("ChainMaze-v0", {"num_bins": 3}, "ChainMaze-v0: num_bins=3, but observations are already integers"),
        ("MountainCar-v0", {"num_actions": 3}, "num_actions=3, but actions are already discrete"),
        ("Pendulum-v1", {"low": (0.0, 0.0, 0.0)}, "low=.*give num_bins too"),
    ],
)
def test_what_cannot_be_binned_is_refused_with_its_reason(env_id, options, message):
    with pytest.raises(InputError, match=message):
        wrap(env_id, **options)


def test_an_observation_beside_an_action_mask_is_refused():
    env, params = make("Maze-v0", layout="umaze", observation="window", window_size=3, has_action_mask=True)
    with pytest.raises(InputError, match="needs an observation that is one array"):
        BinnedEnvironment(env, params, BinningConfig(num_bins=1))
