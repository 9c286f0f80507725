"""Environments by name: those of `ENVS`, all of gymnax, and custom ones from a file."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, get_args, get_origin

import gymnax
from beartype.door import is_bearable

from jaxrl_lm.envs.chain import ChainMaze
from jaxrl_lm.envs.custom import check_environment, file_of, load_factory, trace
from jaxrl_lm.envs.frozen_lake import make_frozen_lake
from jaxrl_lm.envs.maze.environment import Maze, MazeConfig, Observation, Reward
from jaxrl_lm.envs.maze.levels import source_from_options
from jaxrl_lm.envs.settings import make_with_options
from jaxrl_lm.envs.sokoban import make_sokoban
from jaxrl_lm.envs.text.grid_games import make_text_frozen_lake, make_text_sokoban
from jaxrl_lm.envs.text.maze import make_text_maze
from jaxrl_lm.errors import InputError


def _make_maze(
    *,
    size: int | None = None,
    generator: str | None = None,
    observation: Observation = "position",
    reward: Reward = "article",
    num_levels: int | None = None,
    seed: int = 0,
    layout: str | None = None,
    window_size: int = 5,
    max_steps: int | None = None,
    discount: int | float = 0.99,
    has_action_mask: bool = False,
) -> Maze:
    source = source_from_options(size=size, generator=generator, num_levels=num_levels, seed=seed, layout=layout)
    config = MazeConfig(
        observation=observation,
        reward=reward,
        window_size=window_size,
        max_steps=max_steps,
        discount=discount,
        has_action_mask=has_action_mask,
    )
    return Maze(config, source)


ENVS: dict[str, Callable[..., Any]] = {
    "Maze-v0": _make_maze,
    "ChainMaze-v0": ChainMaze,
    "FrozenLake-v0": make_frozen_lake,
    "Sokoban-v0": make_sokoban,
    "TextMaze-v0": make_text_maze,
    "FrozenLake-text": make_text_frozen_lake,
    "Sokoban-text": make_text_sokoban,
}
"""Our environments: a class or a function of keyword options each; their annotations say which values are taken."""


def make(env_id: str, /, **options: Any) -> tuple[Any, Any]:
    """An environment with gymnax's API, and its default parameters.

    Options of `Maze-v0` are those of `maze.levels.source_from_options` (size, generator, num_levels, seed, layout) and
    of `maze.environment.MazeConfig` (observation, reward, window_size, max_steps, discount, has_action_mask); those of
    `FrozenLake-v0` and `Sokoban-v0` are of `frozen_lake.make_frozen_lake` and `sokoban.make_sokoban`. Gymnax's
    environments and those of a file take the arguments of their classes, and fields of their parameters, such as
    max_steps_in_episode.

    Args:
        env_id: one of `list_ids()`, or `file.py:NAME` where NAME is a class or a function that returns an environment
            (or an environment and its parameters).
        options: of that environment.

    Returns:
        The environment, static and hashable, and the parameters to give to its `reset` and `step`.

    Raises:
        InputError: for an unknown id (names the nearest), an unknown option (names those that exist), a wrong value, or
            an environment that raises an error or whose shapes do not fit.
    """
    if env_id in ENVS:
        env = _build(env_id, **options)
        return env, env.default_params
    if env_id in gymnax.registered_envs:
        return _make_from_gymnax(env_id, options)
    if file_of(env_id) is not None:
        factory = load_factory(env_id)
        env, env_params = make_with_options(env_id, factory, factory, options)
        check_environment(env_id, env, env_params)
        return env, env_params
    raise InputError(_unknown_id(env_id))


def list_ids() -> list[str]:
    """Every id that `make` takes: ours, then gymnax's."""
    return [*ENVS, *(env_id for env_id in gymnax.registered_envs if env_id not in ENVS)]


def option_names(env_id: str) -> list[str]:
    """Names of the options of an environment in `ENVS`; none for gymnax's."""
    return list(_option_types(env_id)) if env_id in ENVS else []


def register_with_gymnax() -> None:
    """Make `gymnax.make` know our environments, with the same options as `make`; a second call changes nothing.

    Importing this package does not do it by itself, since gymnax's table belongs to the whole process:

        jaxrl_lm.envs.register_with_gymnax()
        env, params = gymnax.make("Maze-v0", size=9)
    """
    for env_id in ENVS:
        if env_id not in gymnax.registered_envs:
            gymnax.register(env_id, partial(_build, env_id))


def _build(env_id: str, /, **options: Any) -> Any:
    types = _option_types(env_id)
    for name, value in options.items():
        if name not in types:
            raise InputError(f"{env_id} has no option {name!r}; {_say_options(list(types))}")
        if not is_bearable(value, types[name]):
            raise InputError(f"{env_id}: {name}={value!r} must be {_say_type(types[name])}")
    return ENVS[env_id](**options)


def _option_types(env_id: str) -> dict[str, Any]:
    """The annotation of each option of an environment in `ENVS`; `Any` where there is none."""
    parameters = inspect.signature(ENVS[env_id], eval_str=True).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return {each.name: Any if each.annotation is each.empty else each.annotation for each in named}


def _make_from_gymnax(env_id: str, options: dict[str, Any]) -> tuple[Any, Any]:
    constructor = gymnax.registration._registry[env_id]
    env, env_params = make_with_options(env_id, partial(gymnax.make, env_id), constructor, options)
    # Values that a class does not check itself fail no later than here.
    trace(env_id, env, env_params)
    return env, env_params


def _unknown_id(env_id: str) -> str:
    by_lower_case = {known.lower(): known for known in list_ids()}
    near = get_close_matches(env_id.lower(), by_lower_case, n=3, cutoff=0.5)
    known = ", ".join(by_lower_case[name] for name in near) or ", ".join(list_ids())
    return f"no environment is called {env_id!r}; {'did you mean' if near else 'there are'}: {known}"


def _say_options(names: list[str]) -> str:
    return f"its options are {', '.join(names)}" if names else "it has no options"


def _say_type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("|", "or")
