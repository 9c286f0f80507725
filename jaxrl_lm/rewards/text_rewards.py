"""Load reward functions by name, module, file or folder."""

import difflib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards import learned
from jaxrl_lm.rewards.builtin import REWARDS, RewardFunction
from jaxrl_lm.rewards.combined import CombinedReward
from jaxrl_lm.rewards.scores import RESERVED

MODEL_PREFIX = "model:"
FORMS = "a built-in's name, model:FOLDER, module:function or path/to/file.py:function"


def load_reward(spec: str) -> RewardFunction:
    """Load a reward function.

    Args:
        spec: a name in `REWARDS`, `model:FOLDER` (a reward model's folder or hub id), `module:function` (the
            current directory is importable) or `path/to/file.py:function`.

    Returns:
        The function; it is called as `f(prompts=..., completions=..., **columns)`.

    Raises:
        InputError: there is no such reward, or it cannot be imported or called.
    """
    if spec.startswith(MODEL_PREFIX):
        return learned.load_reward(spec.removeprefix(MODEL_PREFIX))
    place, colon, name = spec.rpartition(":")
    if not colon:
        if spec not in REWARDS:
            raise InputError(f"reward {spec!r} is not a built-in{_nearest(spec, list(REWARDS))}; give {FORMS}")
        return REWARDS[spec]
    if not place or not name:
        raise InputError(f"reward {spec!r} has nothing before or after its colon; give {FORMS}")
    is_file = place.endswith(".py") or os.sep in place
    module = _import_file(spec, place) if is_file else _import_module(spec, place)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"reward {spec!r}: {place} has no {name!r}{_nearest(name, public)}; name another")
    reward = getattr(module, name)
    if not callable(reward):
        raise InputError(f"reward {spec!r}: {name} is a {type(reward).__name__}; name a function instead")
    if inspect.isclass(reward):
        raise InputError(f"reward {spec!r}: {name} is a class; name a function, or an instance that can be called")
    return cast(RewardFunction, reward)


def load_rewards(specs: str | Sequence[str], weights: Sequence[float] = ()) -> RewardFunction:
    """Load one reward function, or several as their weighted sum.

    Args:
        specs: one or more, as for `load_reward`.
        weights: one per reward; by default all are 1.

    Returns:
        The function itself if there is one without a weight, else a `CombinedReward`, whose functions are named after
        the code, or `model:` folders after the folder.

    Raises:
        InputError: as `load_reward`; there is no reward, or the weights are not finite or not one per reward.
    """
    specs = [specs] if isinstance(specs, str) else list(specs)
    if not specs:
        raise InputError(f"reward: none given; give {FORMS}")
    if weights and len(weights) != len(specs):
        raise InputError(f"reward_weights: {len(weights)} for {len(specs)} rewards; give one per reward, or none")
    if not all(map(math.isfinite, weights)):
        raise InputError(f"reward_weights={tuple(weights)} must be finite numbers")
    functions = [load_reward(spec) for spec in specs]
    if len(specs) == 1 and not weights:
        return functions[0]
    names: list[str] = []
    for spec in specs:
        names.append(_metric_name(spec, names))
    return CombinedReward(
        functions=dict(zip(names, functions, strict=True)), weights=tuple(map(float, weights)) or (1.0,) * len(specs)
    )


def _metric_name(spec: str, taken: list[str]) -> str:
    """`function`, or `file.function` if that is taken, or with a number appended."""
    place, _, name = spec.rpartition(":")
    where = Path(place).name.removesuffix(".py")
    if spec.startswith(MODEL_PREFIX):
        folder = Path(spec.removeprefix(MODEL_PREFIX))
        # The name of a run's folder says more than that of the model folder in it.
        where, name = folder.parent.name, folder.parent.name if folder.name == "model" else folder.name
    candidates = [
        name,
        *([f"{where}.{name}"] if where else []),
        *(f"{name}-{number}" for number in range(2, 3 + len(taken))),
    ]
    return next(each for each in candidates if each not in RESERVED and each not in taken)


def _import_file(spec: str, place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(f"reward {spec!r}: there is no file {place!r}; check the path, or give {FORMS}")
    if path.suffix != ".py":
        raise InputError(f"reward {spec!r}: {place!r} is not a Python file; give a file that ends in .py")
    try:
        return guarded.import_file(path)
    except Exception as error:
        raise _import_failed(spec, place, error) from error


def _import_module(spec: str, place: str) -> ModuleType:
    # A console script has its own folder on the path, not the user's.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _import_failed(spec, place, error) from error
        raise InputError(
            f"reward {spec!r}: there is no module {error.name!r}, neither installed nor in the current "
            f"directory; give {FORMS}"
        ) from error
    except Exception as error:
        raise _import_failed(spec, place, error) from error


def _import_failed(spec: str, place: str, error: Exception) -> InputError:
    return InputError(f"reward {spec!r}: importing {place} raised {type(error).__name__}: {error}; correct the module")


def _nearest(name: str, present: list[str]) -> str:
    near = difflib.get_close_matches(name, present, n=3)
    guess = f", did you mean {' or '.join(near)}?" if near else ""
    shown = [*present[:10], "..."] if len(present) > 10 else present
    return f"{guess} (there are: {', '.join(shown) or 'none'})"
