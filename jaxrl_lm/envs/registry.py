"""Environments by name: those of `ENVS`, and every one that gymnax knows."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gymnax
from beartype.door import is_bearable

from jaxrl_lm.envs.chain import ChainMaze
from jaxrl_lm.envs.maze.environment import Maze, MazeConfig, Observation, Reward
from jaxrl_lm.envs.maze.levels import source_from_options
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


def _make_chain_maze() -> ChainMaze:
    return ChainMaze()


ENVS: dict[str, Callable[..., Any]] = {
    "Maze-v0": _make_maze,
    "ChainMaze-v0": _make_chain_maze,
}
"""Our environments: a function of keyword options each; their annotations say which values are taken."""


def make(env_id: str, /, **options: Any) -> tuple[Any, Any]:
    """An environment with gymnax's API, and its default parameters.

    Options of `Maze-v0` are those of `maze.levels.source_from_options` (size, generator, num_levels, seed, layout) and
    of `maze.environment.MazeConfig` (observation, reward, window_size, max_steps, discount, has_action_mask);
    `ChainMaze-v0` has none; gymnax's environments take the arguments of their classes.

    Args:
        env_id: one of `list_ids()`.
        options: of that environment.

    Returns:
        The environment, static and hashable, and the parameters to give to its `reset` and `step`.

    Raises:
        InputError: for an unknown id (names the nearest), an unknown option (names those that exist) or a wrong value.
    """
    if env_id in ENVS:
        env = _build(env_id, **options)
        return env, env.default_params
    if env_id in gymnax.registered_envs:
        return _make_from_gymnax(env_id, options)
    raise InputError(_unknown_id(env_id))


def list_ids() -> list[str]:
    """Every id that `make` takes: ours, then gymnax's."""
    return [*ENVS, *(env_id for env_id in gymnax.registered_envs if env_id not in ENVS)]


def option_names(env_id: str) -> list[str]:
    """Names of the options of an environment in `ENVS`; none for gymnax's."""
    return list(inspect.signature(ENVS[env_id]).parameters) if env_id in ENVS else []


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
    make_env = ENVS[env_id]
    hints = get_type_hints(make_env)
    names = option_names(env_id)
    for name, value in options.items():
        if name not in names:
            raise InputError(f"{env_id} has no option {name!r}; {_say_options(names)}")
        if not is_bearable(value, hints[name]):
            raise InputError(f"{env_id}: {name}={value!r} must be {_say_type(hints[name])}")
    return make_env(**options)


def _make_from_gymnax(env_id: str, options: dict[str, Any]) -> tuple[Any, Any]:
    try:
        return gymnax.make(env_id, **options)
    except (TypeError, ValueError) as error:
        if not options:
            raise
        names = list(inspect.signature(type(gymnax.make(env_id)[0])).parameters)
        raise InputError(f"{env_id} cannot be made with {options}: {error}; {_say_options(names)}") from error


def _unknown_id(env_id: str) -> str:
    by_lower_case = {known.lower(): known for known in list_ids()}
    near = get_close_matches(env_id.lower(), by_lower_case, n=3, cutoff=0.5)
    known = ", ".join(by_lower_case[name] for name in near) or ", ".join(list_ids())
    return f"no environment is called {env_id!r}; {'the nearest names' if near else 'there are'}: {known}"


def _say_options(names: list[str]) -> str:
    return f"its options are {', '.join(names)}" if names else "it has no options"


def _say_type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("|", "or")
