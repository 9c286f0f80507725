"""Reward functions called as TRL calls them: by keyword, with what they ask for; async ones are awaited together."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float32

from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.builtin import RewardFunction

COMPLETION_IDS = "completion_ids"
OFFERED = (COMPLETION_IDS, "trainer_state", "log_metric", "log_extra")
"""What a function may ask for by name, or gets among its `**columns`, besides prompts, completions and columns."""


@dataclass(frozen=True, kw_only=True)
class RewardCall:
    """What reward functions are called with.

    Attributes:
        prompts: B of them.
        completions: their answers.
        columns: of the data set, each with B values.
        offered: values of `OFFERED` by name; the answers' tokens are left out where they are not known.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    columns: Mapping[str, list[Any]]
    offered: Mapping[str, Any]

    def arguments(self, function: RewardFunction, name: str) -> dict[str, Any]:
        """What this function is given.

        Raises:
            InputError: it needs the answers' tokens, which are not known.
        """
        asked = _asked(function)
        if asked.get(COMPLETION_IDS) is inspect.Parameter.empty and COMPLETION_IDS not in self.offered:
            raise InputError(
                f"reward function {name!r} asks for completion_ids, which only training knows; give the parameter a "
                "default, or judge by the text"
            )
        offered = {key: value for key, value in self.offered.items() if key in asked}
        return {"prompts": list(self.prompts), "completions": list(self.completions), **self.columns, **offered}


def name_of(reward: RewardFunction) -> str:
    """The function's name; that of the function inside a `partial`, or the class of an object that can be called."""
    while isinstance(reward, partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def call_rewards(functions: Mapping[str, RewardFunction], call: RewardCall) -> Float32[np.ndarray, "F B"]:
    """What each of F functions says of B completions; NaN where it returns None.

    Functions are called in their order; what async ones return is awaited concurrently.

    Args:
        functions: by name.
        call: their arguments.

    Raises:
        InputError: a function raises, or does not return one finite number or None a completion.
    """
    returned: list[Any] = []
    try:
        for name, function in functions.items():
            returned.append(_guarded(name, call, partial(function, **call.arguments(function, name))))
    except BaseException:
        for each in returned:
            if inspect.iscoroutine(each):
                each.close()
        raise
    waiting = [index for index, each in enumerate(returned) if inspect.isawaitable(each)]
    names = list(functions)
    for index, result in zip(waiting, _await_all([returned[index] for index in waiting]), strict=True):
        if isinstance(result, BaseException):
            _raise(names[index], call, result)
        returned[index] = result
    table = [_checked(name, each, call.completions) for name, each in zip(names, returned, strict=True)]
    return np.array(table, np.float32).reshape(len(names), len(call.completions))


def _asked(function: RewardFunction) -> dict[str, Any]:
    """Which of `OFFERED` a function takes, with its defaults; by `**` it takes all."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions in C do not say
        return {}
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return dict.fromkeys(OFFERED) | {each.name: each.default for each in parameters if each.name in OFFERED}
    return {each.name: each.default for each in parameters if each.name in OFFERED}


def _guarded(name: str, call: RewardCall, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        _raise(name, call, error)


def _await_all(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """What they return, or raise, awaited concurrently; in a thread where a loop runs already, as in a notebook."""
    if not awaitables:
        return []

    async def gather() -> list[Any]:
        return await asyncio.gather(*awaitables, return_exceptions=True)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(gather())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, gather()).result()


def _raise(name: str, call: RewardCall, error: BaseException) -> None:
    """Say which function raised, at which completion if that can be seen, and what it was called with."""
    if not isinstance(error, Exception) or isinstance(error, InputError):
        raise error
    called = ", ".join(f"{key}=[...]" for key in ("prompts", "completions", *call.columns))
    row = _row_at_fault(error, call)
    where = "" if row is None else f" at completion {row} (counting from 0), {excerpt(call.completions[row])}"
    hint = ""
    if call.completions and isinstance(call.completions[0 if row is None else row], list):
        hint = (
            '. The prompts are conversations, so each completion is a list of messages, [{"role": "assistant", '
            '"content": ...}], and completion[0]["content"] is its text'
        )
    raise InputError(
        f"reward function {name!r} raised {type(error).__name__}: {error}{where}; it was called as {name}({called}) "
        f"and must take that{hint}"
    ) from error


def _row_at_fault(error: Exception, call: RewardCall) -> int | None:
    """Which completion, or else prompt, a variable of the failing code held, the innermost frame first."""
    frames, traceback = [], error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames[1:]):
        # Python keeps one copy of very short texts, so that any variable may hold them.
        held = {id(value) for value in frame.f_locals.values() if not isinstance(value, str) or len(value) > 1}
        for rows in (call.completions, call.prompts):
            found = [index for index, row in enumerate(rows) if id(row) in held]
            if found:
                return found[0]
    return None


def _checked(name: str, returned: Any, completions: Sequence[Any]) -> list[np.float32]:
    entries = _plain(returned)
    if not isinstance(entries, list | tuple):
        raise InputError(f"reward function {name!r} returned a {type(returned).__name__}; return a list")
    if len(entries) != len(completions):
        raise InputError(
            f"reward function {name!r} returned {len(entries)} numbers for {len(completions)} completions; "
            "return one for each"
        )
    return [_number(entry, name, index, completions[index]) for index, entry in enumerate(entries)]


def _plain(value: Any) -> Any:
    """Turn arrays and scalars of numpy, JAX and torch into lists and numbers of Python."""
    return value.tolist() if hasattr(value, "tolist") else value


def _number(entry: Any, name: str, index: int, completion: Any) -> np.float32:
    if entry is None:
        return np.float32(np.nan)
    number = _plain(entry)
    where = f"reward function {name!r}, completion {index} (counting from 0), {excerpt(completion)}"
    if not isinstance(number, Real):
        raise InputError(f"{where}: returned {str(entry)[:60]!r}, a {type(entry).__name__}; return numbers")
    try:
        with np.errstate(over="ignore"):
            rounded = np.float32(float(number))
    except OverflowError:
        rounded = np.float32(np.inf)
    if not np.isfinite(rounded):
        raise InputError(f"{where}: returned {str(number)[:60]}, not finite in float32; return finite numbers, or None")
    return rounded
