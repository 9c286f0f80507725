"""Wrappers: what each changes, worked by hand, and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxrl_lm.envs import make, reset_batch, step_batch
from jaxrl_lm.envs.base import generated_levels
from jaxrl_lm.envs.binning import BinnedEnvironment, BinningConfig
from jaxrl_lm.envs.custom import check_environment
from jaxrl_lm.envs.wrappers import WRAPPERS, wrap
from jaxrl_lm.errors import InputError
from tests.envs.own_environments import Corridor, Params, State

RIGHT, LEFT = 1, 0


class Parts(Corridor):
    """Shows its position as a number and as a vector."""

    def get_obs(self, state, params=None, key=None):
        return {"number": state.position, "vector": jnp.array([0.5, state.position / 3], jnp.float32)}

    def observation_space(self, params=None):
        return spaces.Dict({"number": spaces.Discrete(4), "vector": spaces.Box(-1.0, 1.0, (2,), jnp.float32)})


def walk(env, actions, params=None, num_envs=1):
    """Observations and rewards of all environments, step by step."""
    params = params or Params()
    observations, states = reset_batch(env, jax.random.key(0), num_envs, params)
    shown, rewards = [np.asarray(observations)], []
    step = jax.jit(lambda key, states, action: step_batch(env, key, states, jnp.full(num_envs, action), params))
    for number, action in enumerate(actions):
        result = step(jax.random.key(number), states, action)
        states = result.states
        shown.append(np.asarray(result.observations))
        rewards.append(np.asarray(result.rewards))
    return np.array(shown), np.array(rewards)


def test_stacked_frames_are_the_last_ones_oldest_first_and_begin_anew_with_an_episode():
    env = wrap(Corridor(), Params(), ("frame_stack=3",))
    shown, _ = walk(env, [RIGHT, RIGHT, RIGHT, RIGHT])
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 0, 0], [0, 0, 1]]  # the third step ends the episode
    np.testing.assert_allclose(shown[:, 0] * 3, expected, atol=1e-6)
    assert env.observation_space(Params()).shape == (3,)
    check_environment("stacked", env, Params())


def test_stacked_planes_grow_on_the_last_axis():
    env, params = make("Asterix-MinAtar")
    stacked = wrap(env, params, ("frame_stack",))
    assert stacked.observation_space(params).shape == (*env.observation_space(params).shape[:2], 16)
    check_environment("stacked", stacked, params)


def test_sticky_actions_repeat_the_last_one_at_their_rate_and_never_before_there_is_one():
    env = wrap(Corridor(length=30), Params(), ("sticky_actions=0.25",))
    shown, _ = walk(env, [RIGHT, RIGHT, LEFT], num_envs=4000)
    np.testing.assert_allclose(shown[2, :, 0] * 30, 2, atol=1e-5)
    is_repeated = np.round(shown[3, :, 0] * 30) == 3
    assert abs(is_repeated.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_rewards_are_clipped():
    _, rewards = walk(wrap(Corridor(), Params(), ("clip_reward=0.5",)), [RIGHT] * 3, Params(bonus=7.0))
    np.testing.assert_array_equal(rewards[:, 0], [0, 0, 0.5])


def test_parts_are_flattened_in_the_order_of_their_names_with_their_bounds():
    env = wrap(Parts(), Params(), ("flatten",))
    shown, _ = walk(env, [RIGHT])
    np.testing.assert_allclose(shown[:, 0], [[0, 0.5, 0], [1, 0.5, 1 / 3]], rtol=1e-6)
    space = env.observation_space(Params())
    np.testing.assert_array_equal(space.low, [0, -1, -1])
    np.testing.assert_array_equal(space.high, [3, 1, 1])
    check_environment("flat", env, Params())


def test_wrappers_are_put_around_each_other_and_equal_ones_are_equal():
    first, second = (wrap(Corridor.__new__(Corridor), Params(), ()) for _ in range(2))
    assert first is not second
    inner = Corridor()
    names = ("clip_reward", "sticky-actions=0.1", "frame_stack=2")
    env, same = (wrap(inner, Params(), names) for _ in range(2))
    assert (env, hash(env)) == (same, hash(same))
    assert env != wrap(inner, Params(), names[:2])
    assert (env.name, env.num_frames, env.env.probability, env.env.env.largest) == ("Corridor", 2, 0.1, 1.0)
    check_environment("all", env, Params())


def test_a_time_limit_stays_that_of_the_environment_inside():
    env = wrap(Corridor(), Params(), ("clip_reward",))
    state = env.reset(jax.random.key(0), Params())[1]
    assert not env.is_truncated(state, Params())
    late = state.replace(inner=State(time=jnp.int32(10), position=jnp.int32(0)))
    assert env.is_truncated(late, Params())


@pytest.mark.parametrize(
    ("wrappers", "words"),
    [
        (("frame_stak=4",), "did you mean frame_stack"),
        (("noise",), "there are: frame_stack, sticky_actions, clip_reward, flatten"),
        (("frame_stack=2.5",), "a whole number of at least 1"),
        (("frame_stack=0",), "a whole number of at least 1"),
        (("sticky_actions=often",), "must have a number"),
        (("sticky_actions=1",), "must be at least 0 and below 1"),
        (("clip_reward=-1",), "must be above 0"),
    ],
)
def test_wrong_wrappers_are_refused(wrappers, words):
    with pytest.raises(InputError, match=words):
        wrap(Corridor(), Params(), wrappers)


def test_integers_are_not_stacked():
    env, params = make("ChainMaze-v0")
    with pytest.raises(InputError, match="frame_stack: observations of ChainMaze-v0"):
        wrap(env, params, ("frame_stack",))


def binned_maze(env, params):
    """The last cell of the window alone, wall or not."""
    return BinnedEnvironment(env, params, BinningConfig(num_bins=(*[1] * 26, 2)))


@pytest.fixture(scope="module")
def maze():
    return make("Maze-v0", size=5, num_levels=4, observation="window", window_size=3)


AROUND_MAZES = {name: partial(lambda name, env, params: wrap(env, params, (name,)), name) for name in WRAPPERS}


@pytest.mark.parametrize("put_around", [*AROUND_MAZES.values(), binned_maze], ids=[*AROUND_MAZES, "binning"])
def test_generated_levels_in_a_wrapper_are_those_without_it_seen_through_it(maze, put_around):
    env, params = maze
    wrapped = put_around(env, params)
    assert generated_levels(wrapped) is env
    held_out = wrapped.of_part("held-out", 3)
    inner = env.of_part("held-out", 3)
    assert held_out == put_around(inner, params)
    assert held_out != wrapped
    levels = inner.new_params(jax.random.key(0))
    observations, states = held_out.level_resets(levels)
    plain, plain_states = inner.level_resets(levels)
    jax.tree.map(np.testing.assert_array_equal, held_out.inner_state(states), plain_states)
    for level in range(3):
        at = partial(jax.tree.map, lambda leaf, level=level: leaf[level])
        shown, state = held_out.begin(at(plain), at(plain_states))
        np.testing.assert_array_equal(at(observations), shown)
        jax.tree.map(np.testing.assert_array_equal, at(states), state)
    assert held_out.observation_space(levels).contains(observations[0])


def test_the_oracle_of_clipped_rewards_is_paid_as_the_agent_is(maze):
    env, params = maze
    for names, factor in ((("frame_stack",), 1.0), (("clip_reward=0.25", "frame_stack", "clip_reward=0.5"), 0.25)):
        # The article's rewards are -1 and 1, so all are clipped alike.
        paid = wrap(env, params, names).optimal_returns(params, 0.9)
        np.testing.assert_allclose(paid, factor * env.optimal_returns(params, 0.9), rtol=1e-5)
