"""Call reward functions as TRL does: by keyword, with the arguments they take; async ones run concurrently."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float32

from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.builtin import RewardFunction

COMPLETION_IDS = "completion_ids"
OFFERED = (COMPLETION_IDS, "trainer_state", "log_metric", "log_extra")
"""Optional arguments of reward functions, in addition to prompts, completions and columns."""


@dataclass(frozen=True, kw_only=True)
class RewardCall:
    """Arguments of a call of reward functions.

    Attributes:
        prompts: B prompts.
        completions: B completions.
        columns: columns of the data set, each with B values.
        offered: values of `OFFERED` by name; without the completion tokens if they are not known.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    columns: Mapping[str, list[Any]]
    offered: Mapping[str, Any]

    def arguments(self, function: RewardFunction, name: str) -> dict[str, Any]:
        """The keyword arguments of this function.

        Raises:
            InputError: it needs the completion tokens, which are not known.
        """
        asked = _asked(function)
        if asked.get(COMPLETION_IDS) is inspect.Parameter.empty and COMPLETION_IDS not in self.offered:
            raise InputError(
                f"reward function {name!r} asks for completion_ids, which only training provides; give the "
                "parameter a default, or use the text"
            )
        offered = {key: value for key, value in self.offered.items() if key in asked}
        return {"prompts": list(self.prompts), "completions": _Rows(self.completions), **self.columns, **offered}


class _Rows(list):
    """Completions as a function gets them: a list that knows which one is being read, for messages of errors.

    Attributes:
        current: index of the row that was read last; None before the first and after the last.
    """

    current: int | None = None

    def __iter__(self) -> Iterator[Any]:
        for index, row in enumerate(super().__iter__()):
            self.current = index
            yield row
        self.current = None


def name_of(reward: RewardFunction) -> str:
    """The function's name; of a `partial` that of its function, of a callable object that of its class."""
    while isinstance(reward, partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def call_rewards(functions: Mapping[str, RewardFunction], call: RewardCall) -> Float32[np.ndarray, "F B"]:
    """Rewards of B completions by each of F functions; NaN where a function returns None.

    Functions are called in order; async ones are awaited concurrently.

    Args:
        functions: reward functions by name.
        call: their arguments.

    Raises:
        InputError: a function raises, or does not return one finite number or None per completion.
    """
    returned: list[Any] = []
    given: list[dict[str, Any]] = []
    try:
        for name, function in functions.items():
            given.append(call.arguments(function, name))
            returned.append(_guarded(name, call, function, given[-1]))
    except BaseException:
        for each in returned:
            if inspect.iscoroutine(each):
                each.close()
        raise
    waiting = [index for index, each in enumerate(returned) if inspect.isawaitable(each)]
    names = list(functions)
    for index, result in zip(waiting, _await_all([returned[index] for index in waiting]), strict=True):
        if isinstance(result, BaseException):
            _raise(names[index], call, result, given[index]["completions"].current)
        returned[index] = result
    table = [_checked(name, each, call.completions) for name, each in zip(names, returned, strict=True)]
    return np.array(table, np.float32).reshape(len(names), len(call.completions))


def _asked(function: RewardFunction) -> dict[str, Any]:
    """Which of `OFFERED` a function takes, with its defaults; with `**` it takes all."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some C functions have no signature
        return {}
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return dict.fromkeys(OFFERED) | {each.name: each.default for each in parameters if each.name in OFFERED}
    return {each.name: each.default for each in parameters if each.name in OFFERED}


def _guarded(name: str, call: RewardCall, function: RewardFunction, arguments: dict[str, Any]) -> Any:
    try:
        return function(**arguments)
    except Exception as error:
        _raise(name, call, error, arguments["completions"].current)


def _await_all(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """Await all concurrently."""
    if not awaitables:
        return []

    async def gather() -> list[Any]:
        return await asyncio.gather(*awaitables, return_exceptions=True)

    return asyncio.run_coroutine_threadsafe(gather(), _event_loop()).result()


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for the whole process, in a thread of its own.

    Locks and HTTP clients that a reward function keeps are bound to the loop that first used them, and a notebook
    already runs one in the main thread.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


def _raise(name: str, call: RewardCall, error: BaseException, current: int | None) -> None:
    """Report which function raised, at which completion if known, and its arguments.

    A completion that no variable holds is only said to be the last one that was read: the error may be elsewhere.

    Args:
        name: of the function.
        call: its arguments.
        error: what it raised.
        current: index of the completion that it read last; None if it read none, or all of them.
    """
    if not isinstance(error, Exception) or isinstance(error, InputError):
        raise error
    called = ", ".join(f"{key}=[...]" for key in ("prompts", "completions", *call.columns))
    # Since Python 3.12 a comprehension has no frame of its own, and its variables are gone when it fails.
    held = _row_at_fault(error, call)
    row = current if held is None else held
    where = "; the last completion that it read was" if held is None else " at completion"
    where = "" if row is None else f"{where} {row} (counting from 0), {excerpt(call.completions[row])}"
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
    """Index of the completion or prompt that a variable of the failing code holds, from the innermost frame."""
    frames, traceback = [], error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames[1:]):
        # Python interns very short texts, so any variable may hold them.
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
            "return one per completion"
        )
    return [_number(entry, name, index, completions[index]) for index, entry in enumerate(entries)]


def _plain(value: Any) -> Any:
    """Convert arrays and scalars of NumPy, JAX and torch to Python lists and numbers."""
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
