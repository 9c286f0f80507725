"""Containing errors and endless loops of file-reading libraries."""

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
    """Turn any error of a file-reading library into an `InputError`.

    Libraries raise many kinds of errors for damaged files. Rust panics do not even derive from `Exception`. Ctrl-C and
    SystemExit pass through unchanged.

    Args:
        what: start of the message: the file and what is wrong with it.
        remedy: end of the message: what to do.

    Raises:
        InputError: the block raised; an `InputError` passes through unchanged.
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
    """Buffer the block's standard error, including that of native code; it is discarded if the block raises.

    A Rust panic prints its own message, often with a backtrace, before Python sees the error.
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
    """Raise `TimeoutError` if the block runs too long.

    It interrupts Python code between instructions and works in the main thread only, which alone receives signals.

    Args:
        seconds: wall-clock limit.

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
    """Whether it is pyo3's exception for a Rust panic; every extension module has its own class."""
    return any(kind.__name__ == "PanicException" for kind in type(error).__mro__)


def _reason(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= _MAX_REASON_CHARACTERS else text[:_MAX_REASON_CHARACTERS] + "..."
