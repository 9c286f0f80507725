"""Errors and endless loops of libraries that read files for us."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from jaxrl_lm.errors import InputError

_MAX_REASON_CHARACTERS = 300


@contextmanager
def foreign_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into an `InputError`.

    Libraries raise errors of many kinds for damaged files. Panics of Rust code do not even derive from `Exception`;
    stopping the program (Ctrl-C, SystemExit) goes through unchanged.

    Args:
        what: the file and what is wrong with it, the beginning of the message.
        remedy: what to do, its end.

    Raises:
        InputError: the block raised; an `InputError` is passed on as it is.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise InputError(f"{what} ({type(error).__name__}: {_reason(error)}); {remedy}") from error


@contextmanager
def held_stderr() -> Iterator[None]:
    """Hold back what the block writes to the standard error stream, native code too; it is dropped if the block raises.

    A panic of Rust code prints a message of its own, often with a backtrace, before Python sees the error.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # the stream is closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        held.seek(0)
        while chunk := held.read(2**16):
            os.write(2, chunk)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in the block once it has run too long.

    It interrupts Python code between two instructions, in the main thread only; elsewhere there is no limit, because
    only the main thread receives signals.

    Args:
        seconds: of wall-clock time.

    Raises:
        TimeoutError: the block ran longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise TimeoutError(f"still not done after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_panic(error: BaseException) -> bool:
    """Whether pyo3 raised it for a panic of Rust code; every extension module has a class of its own for it."""
    return any(kind.__name__ == "PanicException" for kind in type(error).__mro__)


def _reason(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= _MAX_REASON_CHARACTERS else text[:_MAX_REASON_CHARACTERS] + "..."
