"""Environments by name: the table, its options and their errors, and gymnax's own table."""

import inspect
from dataclasses import fields

import gymnax
import jax
import pytest

from jaxrl_lm.envs import list_ids, make, register_with_gymnax
from jaxrl_lm.envs.chain import ChainMaze
from jaxrl_lm.envs.maze.environment import Maze, MazeConfig
from jaxrl_lm.envs.maze.levels import source_from_options
from jaxrl_lm.envs.registry import ENVS, option_names
from jaxrl_lm.errors import InputError

SMALL = {"layout": "umaze"}


def test_the_documented_options_of_the_maze_reach_the_environment_and_its_levels():
    env, params = make("Maze-v0", size=7, observation="grid", reward="shaped", num_levels=8, seed=3, max_steps=17)
    assert isinstance(env, Maze)
    assert (env.config.observation, env.config.reward) == ("grid", "shaped")
    assert env.source == source_from_options(size=7, num_levels=8, seed=3)
    assert params.bank.moves.shape == (8, 49)
    assert params.max_steps_in_episode == 17


def test_defaults_are_those_of_the_configuration_and_the_level_source():
    parameters = inspect.signature(ENVS["Maze-v0"]).parameters
    configured = {field.name: field.default for field in fields(MazeConfig)}
    configured |= {
        name: parameter.default for name, parameter in inspect.signature(source_from_options).parameters.items()
    }
    assert {name: parameter.default for name, parameter in parameters.items()} == configured


class Corridor(ChainMaze):
    """An environment with options, which is in the table as a class."""

    def __init__(self, *, length: int = 6, kind: "str | None" = None, anything=1) -> None:
        self.length = length


def test_a_class_with_options_can_be_put_into_the_table(monkeypatch):
    monkeypatch.setitem(ENVS, "Corridor-v0", Corridor)
    assert make("Corridor-v0", length=3, kind="x", anything=object())[0].length == 3
    assert option_names("Corridor-v0") == ["length", "kind", "anything"]
    with pytest.raises(InputError, match=r"Corridor-v0: length='3' must be int"):
        make("Corridor-v0", length="3")
    with pytest.raises(InputError, match=r"Corridor-v0: kind=3 must be str or None"):
        make("Corridor-v0", kind=3)
    with pytest.raises(InputError, match=r"Corridor-v0 has no option 'size'; its options are length, kind, anything"):
        make("Corridor-v0", size=3)


def test_equal_options_give_equal_environments_so_that_programs_are_not_compiled_twice():
    first, second = (make("Maze-v0", **SMALL)[0] for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert make("ChainMaze-v0")[0] == make("ChainMaze-v0")[0]
    assert make("Maze-v0", **SMALL, reward="sparse")[0] != first


def test_the_seed_decides_the_levels():
    banks = [make("Maze-v0", size=7, num_levels=8, seed=seed)[1].bank.moves.tolist() for seed in (0, 0, 1)]
    assert banks[0] == banks[1]
    assert banks[0] != banks[2]


def test_every_id_of_gymnax_is_listed_and_made_by_gymnax():
    ids = list_ids()
    assert ids[: len(ENVS)] == list(ENVS)
    assert set(gymnax.registered_envs) <= set(ids)
    assert len(ids) == len(set(ids))
    env, params = make("CartPole-v1")
    assert type(env) is type(gymnax.make("CartPole-v1")[0])
    assert params.max_steps_in_episode == 500


def test_options_of_gymnax_environments_reach_their_classes():
    env, params = make("FourRooms-misc", use_visual_obs=True)
    assert env.observation_space(params).shape == (13, 13, 2)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("Maze-v1", "Maze-v0"), ("maze", "Maze-v0"), ("chainmaze-v0", "ChainMaze-v0"), ("CartPole", "CartPole-v1")],
)
def test_an_unknown_id_names_the_nearest(wrong, near):
    with pytest.raises(InputError, match=f"{wrong}.*did you mean: .*{near}"):
        make(wrong)


def test_an_id_like_no_other_names_all():
    with pytest.raises(InputError, match=r"there are: Maze-v0, ChainMaze-v0.*Pong-misc"):
        make("0")


@pytest.mark.parametrize("env_id", list(ENVS))
def test_an_unknown_option_names_those_that_exist(env_id):
    with pytest.raises(InputError, match=f"{env_id} has no option 'sise'; it.* options?") as caught:
        make(env_id, sise=7)
    assert all(name in str(caught.value) for name in option_names(env_id))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("size", 8, "size=8"),
        ("size", "13", "size='13' must be int"),
        ("size", 13.0, "size=13.0 must be int"),
        ("generator", "dfs", "generator='dfs'"),
        ("observation", "pixels", "observation='pixels' must be one of position, grid, window"),
        ("reward", None, "reward=None must be one of article, steps, sparse, shaped"),
        ("num_levels", 0, "num_levels=0"),
        ("layout", 3, "layout=3 must be str or None"),
        ("window_size", 4, "window_size=4"),
        ("max_steps", 0, "max_steps=0"),
        ("discount", 1.5, "discount=1.5"),
        ("discount", "0.9", "discount='0.9' must be int or float"),
    ],
)
def test_a_wrong_value_names_option_value_and_remedy(option, value, message):
    with pytest.raises(InputError, match=message):
        make("Maze-v0", **{option: value})


def test_gymnax_makes_our_environments_after_registration_which_may_be_repeated(monkeypatch):
    # gymnax's tables belong to the process; other tests must find them as they were.
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    before = list(gymnax.registered_envs)
    try:
        with pytest.raises(ValueError, match="not in registered"):
            gymnax.make("Maze-v0")
        register_with_gymnax()
        register_with_gymnax()
        assert gymnax.registered_envs == [*before, *ENVS]
        assert list_ids() == [*ENVS, *before]
        env, params = gymnax.make("Maze-v0", **SMALL, observation="grid")
        assert env == make("Maze-v0", **SMALL, observation="grid")[0]
        observation, state = env.reset(jax.random.key(0), params)
        observation, *_ = env.step(jax.random.key(1), state, 0, params)
        assert observation.shape == (env.source.height, env.source.width, 3)
        assert isinstance(gymnax.make("ChainMaze-v0")[0], ChainMaze)
        with pytest.raises(InputError, match="no option 'sise'"):
            gymnax.make("Maze-v0", sise=7)
    finally:
        gymnax.registered_envs[:] = before
