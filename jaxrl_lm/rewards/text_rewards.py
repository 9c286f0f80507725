"""Rewards for texts: functions of TRL's signature, found by name and checked when called."""

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from jaxtyping import Float32

from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards import learned
from jaxrl_lm.rewards.builtin import REWARDS, RewardFunction

MODEL_PREFIX = "model:"
FORMS = "a built-in's name, model:FOLDER, module:function or path/to/file.py:function"


def load_reward(spec: str) -> RewardFunction:
    """Find a reward function.

    Args:
        spec: a name of the table `REWARDS`, `model:FOLDER` (a reward model's folder or hub id), `module:function` (the
            current directory is importable) or `path/to/file.py:function`.

    Returns:
        The function; it is called as `f(prompts=..., completions=..., **columns)`.

    Raises:
        InputError: there is no such reward, or what is there cannot be imported or called.
    """
    if spec.startswith(MODEL_PREFIX):
        return learned.load_reward(spec.removeprefix(MODEL_PREFIX))
    place, colon, name = spec.rpartition(":")
    if not colon:
        if spec not in REWARDS:
            raise InputError(f"reward {spec!r} is no built-in{_nearest(spec, list(REWARDS))}; give {FORMS}")
        return REWARDS[spec]
    if not place or not name:
        raise InputError(f"reward {spec!r} lacks what stands before or after its colon; give {FORMS}")
    is_file = place.endswith(".py") or os.sep in place
    module = _import_file(spec, place) if is_file else _import_module(spec, place)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"reward {spec!r}: {place} has no {name!r}{_nearest(name, public)}; name another")
    reward = getattr(module, name)
    if not callable(reward):
        raise InputError(f"reward {spec!r}: {name} is a {type(reward).__name__}; name a function instead")
    return cast(RewardFunction, reward)


def score_completions(
    reward: RewardFunction, prompts: list[Prompt], completions: list[str]
) -> Float32[np.ndarray, " B"]:
    """Reward each completion of a batch.

    Args:
        reward: called once for the batch, by keyword, as TRL calls it.
        prompts: B prompts; a column that some of them lack is None there.
        completions: the answers' text, one a prompt; wrapped as an assistant's message where the prompt is a
            conversation.

    Returns:
        The rewards, all finite.

    Raises:
        InputError: the function raises, or does not return one finite number a completion.
    """
    assert len(prompts) == len(completions), f"{len(prompts)} prompts, {len(completions)} completions"
    name = getattr(reward, "__name__", type(reward).__name__)
    entries = _call(reward, name, prompts, completions)
    if len(entries) != len(completions):
        raise InputError(
            f"reward function {name!r} returned {len(entries)} numbers for {len(completions)} completions; "
            "return one for each"
        )
    checked = [_checked(entry, name, index, completions[index]) for index, entry in enumerate(entries)]
    return np.array(checked, np.float32)


def _call(reward: RewardFunction, name: str, prompts: list[Prompt], completions: list[str]) -> Sequence[Any]:
    columns = _columns(prompts)
    try:
        returned = reward(
            prompts=[prompt.prompt for prompt in prompts],
            completions=[_like(prompt, text) for prompt, text in zip(prompts, completions, strict=True)],
            **columns,
        )
    except Exception as error:
        called = ", ".join(f"{key}=[...]" for key in ("prompts", "completions", *columns))
        raise InputError(
            f"reward function {name!r} raised {type(error).__name__}: {error}; it was called as "
            f"{name}({called}) and must take that"
        ) from error
    entries = _plain(returned)
    if not isinstance(entries, list | tuple):
        raise InputError(f"reward function {name!r} returned a {type(returned).__name__}; return a list")
    return entries


def _columns(prompts: list[Prompt]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    for taken in ("prompts", "completions"):
        if taken in names:
            raise InputError(f"the data set has a column {taken!r}, the name of an argument of every reward; rename it")
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def _like(prompt: Prompt, text: str) -> str | list[dict[str, str]]:
    if isinstance(prompt.prompt, str):
        return text
    return [{"role": "assistant", "content": text}]


def _plain(value: Any) -> Any:
    """Turn arrays and scalars of numpy, JAX and torch into lists and numbers of Python."""
    return value.tolist() if hasattr(value, "tolist") else value


def _checked(entry: Any, name: str, index: int, completion: str) -> np.float32:
    number = _plain(entry)
    where = f"reward function {name!r}, completion {index} (counting from 0), {completion[:60]!r}"
    if not isinstance(number, Real):
        raise InputError(f"{where}: returned {str(entry)[:60]!r}, a {type(entry).__name__}; return numbers")
    try:
        with np.errstate(over="ignore"):
            rounded = np.float32(float(number))
    except OverflowError:
        rounded = np.float32(np.inf)
    if not np.isfinite(rounded):
        raise InputError(f"{where}: returned {str(number)[:60]}, not finite in float32; return finite numbers")
    return rounded


def _import_file(spec: str, place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(f"reward {spec!r}: the file {place!r} is not there; check the path, or give {FORMS}")
    found = importlib.util.spec_from_file_location(f"reward_file {path}", path)
    if found is None or found.loader is None:
        raise InputError(f"reward {spec!r}: {place!r} is not a Python file; give a file that ends in .py")
    module = importlib.util.module_from_spec(found)
    # Dataclasses look their module up while it is being executed.
    sys.modules[found.name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[found.name]
        raise _import_failed(spec, place, error) from error
    return module


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
    return InputError(f"reward {spec!r}: importing {place} raised {type(error).__name__}: {error}; mend the module")


def _nearest(name: str, present: list[str]) -> str:
    near = difflib.get_close_matches(name, present, n=3)
    guess = f", did you mean {' or '.join(near)}?" if near else ""
    shown = [*present[:10], "..."] if len(present) > 10 else present
    return f"{guess} (there are: {', '.join(shown) or 'none'})"
