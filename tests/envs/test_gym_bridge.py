"""The bridge to gymnasium against stepping in JAX, gymnasium's own vector environment, and its checks."""

import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from jaxrl_lm.envs import make
from jaxrl_lm.envs.gym_bridge import JaxEnv, JaxVectorEnv, make_single, make_vec, register_with_gymnasium
from jaxrl_lm.errors import InputError

RIGHT = 3
LAYOUT = "#####\n#S.G#\n#####"


def test_five_steps_right_end_the_chain_and_the_final_observation_stands_in_infos():
    envs = make_vec("ChainMaze-v0", 3)
    observations, infos = envs.reset(seed=0)
    np.testing.assert_array_equal(observations, [0, 0, 0])
    assert infos == {}
    actions = np.array([RIGHT, RIGHT, 0])
    for place in range(1, 5):
        observations, rewards, terminations, truncations, infos = envs.step(actions)
        np.testing.assert_array_equal(observations, [place, place, 0])
        np.testing.assert_array_equal(rewards, [-1, -1, -1])
        assert not (terminations | truncations).any()
        assert infos == {}
    observations, rewards, terminations, truncations, infos = envs.step(actions)
    np.testing.assert_array_equal(observations, [0, 0, 0])
    np.testing.assert_array_equal(rewards, [1, 1, -1])
    np.testing.assert_array_equal(terminations, [True, True, False])
    assert not truncations.any()
    assert infos["final_obs"].tolist() == [5, 5, None]
    np.testing.assert_array_equal(infos["_final_obs"], [True, True, False])
    np.testing.assert_array_equal(infos["_final_info"], [True, True, False])
    assert infos["final_info"] == {}


def test_infos_have_the_form_of_gymnasiums_own_same_step_environment():
    ours = make_vec("ChainMaze-v0", 2)
    theirs = SyncVectorEnv([lambda: make_single("ChainMaze-v0")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"]
    ours.reset(seed=0)
    theirs.reset(seed=0)
    for step in range(12):
        actions = np.array([RIGHT, RIGHT if step else 0])
        (*mine, my_infos), (*others, other_infos) = ours.step(actions), theirs.step(actions)
        for mine_part, others_part in zip(mine, others, strict=True):
            np.testing.assert_array_equal(mine_part, others_part)
        assert my_infos.keys() == other_infos.keys()
        for name, expected in other_infos.items():
            np.testing.assert_array_equal(my_infos[name], expected)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FourRooms-misc"])
def test_observations_of_gymnax_environments_lie_in_the_spaces_as_writable_arrays(env_id):
    envs = make_vec(env_id, 3)
    observations, _ = envs.reset(seed=1)
    envs.action_space.seed(0)
    for _ in range(3):
        assert observations in envs.observation_space
        assert observations.flags.writeable
        assert observations[0] in envs.single_observation_space
        actions = envs.action_space.sample()
        observations, rewards, terminations, truncations, _ = envs.step(actions)
        assert rewards.dtype == np.float32
        assert terminations.dtype == truncations.dtype == bool
        assert rewards.shape == terminations.shape == truncations.shape == (3,)


def test_an_action_mask_comes_as_a_dictionary_that_its_space_contains():
    envs = make_vec("Maze-v0", 2, layout=LAYOUT, observation="grid", has_action_mask=True)
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert observations["observation"].dtype == np.uint8
    np.testing.assert_array_equal(observations["action_mask"], [[0, 0, 0, 1]] * 2)
    envs.step(np.array([RIGHT, 0]))
    _, _, terminations, _, infos = envs.step(np.array([RIGHT, 0]))
    np.testing.assert_array_equal(terminations, [True, False])
    assert infos["final_obs"][0] in envs.single_observation_space
    np.testing.assert_array_equal(infos["final_obs"][0]["action_mask"], [0, 0, 1, 0])
    assert infos["final_obs"][1] is None


def test_a_time_limit_is_flagged_truncated():
    envs = make_vec("Maze-v0", 2, layout=LAYOUT, max_steps=2)
    envs.reset(seed=0)
    envs.step(np.array([0, RIGHT]))
    _, _, terminations, truncations, infos = envs.step(np.array([0, 0]))
    assert not terminations.any()
    assert truncations.all()
    assert infos["final_obs"].tolist() == [6, 7]


def test_the_seed_decides_episodes_and_a_reset_without_one_goes_on():
    def observe(envs: JaxVectorEnv, **options) -> list[float]:
        first, _ = envs.reset(**options)
        second, *_ = envs.step(np.zeros(4, int))
        return np.concatenate([first, second]).ravel().tolist()

    one, other = make_vec("CartPole-v1", 4, seed=5), make_vec("CartPole-v1", 4, seed=5)
    beginning = observe(one)
    assert observe(other) == beginning
    assert observe(one) != beginning
    assert observe(one, seed=5) == beginning
    assert observe(one, seed=6) != beginning


def test_every_step_draws_its_resets_anew():
    # 25 starts, and each step ends every episode.
    envs = make_vec("Maze-v0", 8, layout="double-t", max_steps=1)
    envs.reset(seed=0)
    starts = [tuple(envs.step(np.zeros(8, int))[0].tolist()) for _ in range(4)]
    assert len(set(starts)) == 4


def test_the_seed_decides_the_levels_too():
    banks = [make_vec("Maze-v0", 1, seed=seed, size=7, num_levels=8).env_params.bank.moves for seed in (2, 3)]
    np.testing.assert_array_equal(banks[0], make("Maze-v0", size=7, num_levels=8, seed=2)[1].bank.moves)
    assert not np.array_equal(banks[0], banks[1])


def test_gymnasiums_vector_wrappers_read_our_infos():
    envs = DictInfoToList(RecordEpisodeStatistics(make_vec("ChainMaze-v0", 2)))
    envs.reset(seed=0)
    for _ in range(5):
        *_, infos = envs.step(np.array([RIGHT, 0]))
    assert infos[0]["episode"]["r"] == -3
    assert infos[0]["episode"]["l"] == 5
    assert infos[0]["final_obs"] == 5
    assert infos[1] == {}


def test_gymnasium_makes_ours_after_registration_which_may_be_repeated():
    before = set(gymnasium.registry)
    try:
        register_with_gymnasium()
        register_with_gymnasium()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            envs = gymnasium.make_vec("Maze-v0", num_envs=2, layout=LAYOUT, reward="sparse")
            env = gymnasium.make("ChainMaze-v0")
        assert isinstance(envs, JaxVectorEnv)
        envs.reset(seed=0)
        envs.step(np.array([RIGHT, RIGHT]))
        assert envs.step(np.array([RIGHT, 0]))[1].tolist() == [1, 0]
        assert isinstance(env.unwrapped, JaxEnv)
        check_env(env.unwrapped)
    finally:
        for env_id in set(gymnasium.registry) - before:
            del gymnasium.registry[env_id]


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized.*")
@pytest.mark.parametrize(
    ("env_id", "options"),
    [("Maze-v0", {"layout": LAYOUT, "observation": "grid", "has_action_mask": True}), ("Pendulum-v1", {})],
)
def test_single_environments_pass_gymnasiums_checks(env_id, options):
    check_env(make_single(env_id, **options), skip_render_check=True)


def test_a_single_environment_shows_the_final_observation_and_does_not_reset():
    env = make_single("ChainMaze-v0")
    env.reset(seed=0)
    for _ in range(4):
        env.step(RIGHT)
    assert env.step(RIGHT) == (5, 1.0, True, False, {})
    assert env.reset() == (0, {})


def test_a_single_environment_steps_as_gymnax_does():
    env = make_single("CartPole-v1")
    inner, params = make("CartPole-v1")
    env.reset(seed=0)
    state = env._state
    observation, reward, *_ = env.step(1)
    expected, _, expected_reward, *_ = inner.step(jax.random.key(0), state, jnp.int32(1), params)
    np.testing.assert_array_equal(observation, expected)
    assert reward == expected_reward


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_vec("ChainMaze-v0", 0), "num_envs=0 must be at least 1"),
        (lambda: make_vec("Maze-v1", 1), "did you mean: Maze-v0"),
        (lambda: make_vec("ChainMaze-v0", 1).step(np.zeros(1, int)), "call reset first"),
        (lambda: make_single("ChainMaze-v0").step(0), "call reset first"),
        (lambda: make_vec("ChainMaze-v0", 1).reset(options={"level": 1}), r"takes no options, but got \['level'\]"),
    ],
)
def test_wrong_calls_are_refused_with_a_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_actions_of_another_shape_are_refused():
    envs = make_vec("ChainMaze-v0", 2)
    envs.reset(seed=0)
    with pytest.raises(InputError, match=r"shape \(3,\), but must have \(2,\)"):
        envs.step(np.zeros(3, int))
