"""Custom environments: `file.py:NAME`, a class or a function that returns an environment with gymnax's API."""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from gymnax.environments import spaces

from jaxrl_lm import guarded
from jaxrl_lm.envs.stepping import MaskedObservation, as_action
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

_SIX = (
    "gymnax 1's step returns six values: observation, state, reward, terminated, truncated, info, with "
    'info["final_observation"]. Derive the class from gymnax.environments.environment.Environment and define reset_env '
    "(observation, state) and step_env (observation, state, reward, terminated, info): step then adds the time limit "
    "and the reset"
)


def file_of(env_id: str) -> Path | None:
    """The file that an id of the form `file.py:NAME` names; None for other ids."""
    place, colon, name = env_id.rpartition(":")
    return Path(place) if colon and name and place.endswith(".py") else None


def load_factory(env_id: str) -> Any:
    """The class or function that `file.py:NAME` names.

    Raises:
        InputError: the file is missing or cannot be imported, or has nothing callable of this name.
    """
    path, name = file_of(env_id), env_id.rpartition(":")[2]
    assert path is not None, env_id
    module = _import(env_id, path)
    found = getattr(module, name, None)
    if not callable(found):
        public = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__ and not key.startswith("_")
        ]
        raise InputError(
            f"env={env_id!r}: {path} has no class or function {name!r}; it has {', '.join(public) or 'none at all'}"
        )
    return found


def _import(env_id: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"env={env_id!r}: there is no file {str(path)!r}; check the path")
    try:
        return guarded.import_file(path)
    except Exception as error:
        raise InputError(f"env={env_id!r}: importing {path} raised {type(error).__name__}: {error}") from error


def check_environment(env_id: str, env: Any, params: Any) -> None:
    """Check an environment's spaces, shapes and types by tracing a reset and a step; nothing is computed.

    Args:
        env_id: how messages call it.
        env: the environment.
        params: its parameters.

    Raises:
        InputError: says what does not fit.
    """
    for name in ("reset", "step", "observation_space", "action_space"):
        if not callable(getattr(env, name, None)):
            raise InputError(f"env={env_id!r}: a {type(env).__name__} has no method {name}. {_SIX}")
    _check_transition(env_id, env, params)
    observation, state, stepped = trace(env_id, env, params)
    if not isinstance(stepped, tuple) or len(stepped) != 6:
        given = f"{len(stepped)} values" if isinstance(stepped, tuple) else type(stepped).__name__
        raise InputError(f"env={env_id!r}: step returns {given}. {_SIX}")
    next_observation, next_state, reward, terminated, truncated, info = stepped
    shown = observation.observation if isinstance(observation, MaskedObservation) else observation
    _check_space(env_id, env.observation_space(params), shown)
    _check_same(env_id, "observation", observation, next_observation)
    _check_same(env_id, "state", state, next_state)
    for name, value in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
        if np.shape(value):
            raise InputError(f"env={env_id!r}: step returns a {name} of shape {np.shape(value)}; it must be one number")
    if not isinstance(info, dict) or "final_observation" not in info:
        raise InputError(f"env={env_id!r}: step's info lacks final_observation. {_SIX}")


def trace(env_id: str, env: Any, params: Any) -> tuple[PyTree, PyTree, Any]:
    """Shapes of a reset's observation and state, and of what a step returns.

    Raises:
        InputError: the environment raised an error, which the message has.
    """
    key = jax.random.key(0)
    part = "reset"
    try:
        observation, state = jax.eval_shape(env.reset, key, params)
        part = "action_space"
        action = jax.eval_shape(lambda key: as_action(env.action_space(params).sample(key)), key)
        part = "observation_space"
        env.observation_space(params)
        part = "step"
        return observation, state, jax.eval_shape(env.step, key, state, action, params)
    except InputError:
        raise
    except Exception as error:
        hint = f". {_SIX}" if part in ("reset", "step") and isinstance(error, ValueError | NotImplementedError) else ""
        raise InputError(
            f"env={env_id!r}: its {part} raised {type(error).__name__}: {_first_line(error)}{hint}"
        ) from error


def _check_transition(env_id: str, env: Any, params: Any) -> None:
    """Compare what step_env returns with a reset; gymnax's own step would fail with an error of JAX's."""
    if not hasattr(env, "step_env"):
        return
    key = jax.random.key(0)
    try:
        observation, state = jax.eval_shape(env.reset, key, params)
        action = jax.eval_shape(lambda key: as_action(env.action_space(params).sample(key)), key)
        next_observation, next_state, *_ = jax.eval_shape(env.step_env, key, state, action, params)
    except Exception:
        return  # `trace` says what is wrong
    _check_same(env_id, "observation", observation, next_observation)
    _check_same(env_id, "state", state, next_state)


def _check_space(env_id: str, space: Any, shown: PyTree) -> None:
    if not isinstance(space, spaces.Discrete | spaces.Box):
        return  # wrappers may flatten it; what cannot be learned from is refused with the network
    expected = (tuple(space.shape), np.dtype(space.dtype))
    found = (np.shape(shown), np.dtype(getattr(shown, "dtype", type(shown))))
    if found[0] != expected[0] or found[1].kind != expected[1].kind:
        raise InputError(
            f"env={env_id!r}: reset returns an observation of shape {found[0]} and type {found[1]}, but "
            f"observation_space says shape {expected[0]} and type {expected[1]}"
        )


def _check_same(env_id: str, name: str, at_reset: PyTree, at_step: PyTree) -> None:
    def shapes(tree: PyTree) -> Any:
        return jax.tree.map(lambda leaf: f"{np.dtype(leaf.dtype) if hasattr(leaf, 'dtype') else ''}{leaf.shape}", tree)

    first, second = shapes(at_reset), shapes(at_step)
    if first != second:
        raise InputError(
            f"env={env_id!r}: reset returns the {name} {first}, but step returns {second}; shapes and types must be "
            "the same, since a step that ends an episode chooses between the two"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
