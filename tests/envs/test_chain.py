"""The six-state chain: its moves, its rewards, its exact values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.envs import make, reset_batch, step_batch
from jaxrl_lm.envs.chain import optimal_values
from jaxrl_lm.errors import InputError

UP, DOWN, LEFT, RIGHT = range(4)
KEY = jax.random.key(0)


def transitions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Next state, reward and end of every state and action `[5, 4]`, by stepping the environment."""
    env, params = make("ChainMaze-v0")
    _, state = env.reset(KEY, params)
    rows = [
        [env.step_env(KEY, state.replace(position=jnp.int32(place)), move, params) for move in range(4)]
        for place in range(5)
    ]
    return tuple(np.array([[float(step[part]) for step in row] for row in rows]) for part in (0, 2, 3))


def test_moves_and_rewards_are_those_written_by_hand():
    places, rewards, ends = transitions()
    np.testing.assert_array_equal(places, [[0, 0, 0, 1], [1, 1, 0, 2], [2, 2, 1, 3], [3, 3, 2, 4], [4, 4, 3, 5]])
    is_goal = places == 5
    np.testing.assert_array_equal(rewards, np.where(is_goal, 1.0, -1.0))
    np.testing.assert_array_equal(ends, is_goal)


def test_values_at_gamma_0_9_are_those_of_the_article():
    np.testing.assert_allclose(optimal_values(0.9), [-2.7829, -1.981, -1.09, -0.1, 1.0, 0.0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_values_agree_with_value_iteration_over_the_stepped_environment(discount):
    places, rewards, ends = transitions()
    values = np.zeros(6)
    for _ in range(20):
        targets = rewards + discount * (1 - ends) * values[places.astype(int)]
        values[:5] = targets.max(axis=1)
    np.testing.assert_allclose(optimal_values(discount), values, rtol=0, atol=1e-12)


def test_walking_right_earns_the_undiscounted_value_of_the_start():
    env, params = make("ChainMaze-v0")
    observations, states = reset_batch(env, KEY, 3, params)
    np.testing.assert_array_equal(observations, [0, 0, 0])
    total, terminated = 0.0, np.zeros(3, bool)
    for number in range(5):
        assert not terminated.any()
        result = step_batch(env, jax.random.fold_in(KEY, number), states, jnp.full(3, RIGHT), params)
        states, terminated = result.states, np.array(result.terminated)
        total += result.rewards
    assert terminated.all()
    np.testing.assert_array_equal(total, np.full(3, optimal_values(1.0)[0]))
    np.testing.assert_array_equal(result.final_observations, [5, 5, 5])
    np.testing.assert_array_equal(result.observations, [0, 0, 0])


@pytest.mark.parametrize("discount", [-0.1, 1.1, float("nan")])
def test_a_discount_outside_0_to_1_is_refused(discount):
    with pytest.raises(InputError, match=r"discount=.* must be in \[0, 1\]"):
        optimal_values(discount)
