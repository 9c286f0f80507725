"""Options of environments that are not ours: arguments of a constructor, or fields of the parameters."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from jaxrl_lm.errors import InputError


def make_with_options(
    env_id: str, make: Callable[..., Any], constructor: Callable[..., Any], options: dict[str, Any]
) -> tuple[Any, Any]:
    """An environment and its parameters, options given to its constructor or put into its parameters.

    Args:
        env_id: how messages call it.
        make: makes the environment from arguments of the constructor; may return its parameters as well.
        constructor: the class or function whose signature says which arguments there are.
        options: by name; one that is both goes to the constructor.

    Raises:
        InputError: an unknown option (all that exist are named), a wrong value, or an error of the constructor.
    """
    arguments = [
        name
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    given = {name: value for name, value in options.items() if name in arguments}
    try:
        made = make(**given)
        env, params = made if isinstance(made, tuple) else (made, made.default_params)
    except InputError:
        raise
    except Exception as error:
        with_options = f" with {given}" if given else ""
        message = str(error).strip() or "no reason given"
        raise InputError(
            f"env={env_id!r} cannot be made{with_options}: {type(error).__name__}: {message}; "
            f"its options are {', '.join(arguments) or 'none'}"
        ) from error
    fields = [field.name for field in dataclasses.fields(params)] if dataclasses.is_dataclass(params) else []
    changes = {name: value for name, value in options.items() if name not in given}
    for name, value in changes.items():
        if name not in fields:
            known = [*arguments, *(field for field in fields if field not in arguments)]
            raise InputError(f"env={env_id!r} has no option {name!r}; its options are {', '.join(known) or 'none'}")
        changes[name] = _like(env_id, name, value, getattr(params, name))
    return env, dataclasses.replace(cast(Any, params), **changes) if changes else params


def _like(env_id: str, name: str, value: Any, default: Any) -> Any:
    """A value for a field of the parameters, of the type that its default has."""
    problem = f"env={env_id!r}: {name}={value!r} must be "
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(problem + "true or false")
        return value
    if isinstance(default, int | float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not np.isfinite(value) or (isinstance(default, int) and value != int(value)):
            raise InputError(problem + ("a whole number" if isinstance(default, int) else "a number"))
        if name == "max_steps_in_episode" and value < 1:
            raise InputError(problem + "at least 1")
        return type(default)(value)
    if not hasattr(default, "dtype"):
        raise InputError(f"env={env_id!r}: {name} is a {type(default).__name__} and cannot be set by an option")
    try:
        return jnp.broadcast_to(jnp.asarray(value, default.dtype), default.shape)
    except (TypeError, ValueError):
        raise InputError(problem + f"numbers of shape {default.shape}") from None
