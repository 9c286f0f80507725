"""Errors of libraries, panics of Rust, and time."""

import itertools
import os
import threading
import time

import pytest

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError


@pytest.mark.parametrize("kind", [ValueError, AttributeError, RecursionError, MemoryError, StopIteration])
def test_errors_of_libraries_become_input_errors(kind):
    with pytest.raises(InputError) as caught, guarded.foreign_errors("f is damaged", "fix it"):
        raise kind("why")
    assert str(caught.value) == f"f is damaged ({kind.__name__}: why); fix it"
    assert isinstance(caught.value.__cause__, kind)


def test_a_long_reason_is_cut():
    with pytest.raises(InputError) as caught, guarded.foreign_errors("f", "fix it"):
        raise ValueError("x" * 10_000)
    assert len(str(caught.value)) < 400


def test_what_stops_the_program_and_input_errors_pass():
    for error in (KeyboardInterrupt(), SystemExit(3), InputError("said")):
        with pytest.raises(type(error)) as caught, guarded.foreign_errors("f", "fix it"):
            raise error
        assert caught.value is error


def test_a_panic_of_rust_becomes_an_input_error():
    class PanicException(BaseException):  # as pyo3 makes it, one for every extension module
        pass

    assert issubclass(PanicException, BaseException)
    with pytest.raises(InputError, match="PanicException: index out of bounds"), guarded.foreign_errors("f", "fix it"):
        raise PanicException("index out of bounds")


def test_python_code_is_stopped_when_its_time_is_over():
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"still not done after 0\.05 seconds"), guarded.time_limit(0.05):
        sum(1 for _ in itertools.count())
    assert time.monotonic() - began < 5
    with guarded.time_limit(0.05):
        pass
    time.sleep(0.1)  # nothing rings later


def test_other_threads_have_no_time_limit():
    said = []

    def work():
        with guarded.time_limit(0.001):
            time.sleep(0.01)
        said.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == ["done"]


def test_what_native_code_prints_is_dropped_with_its_error_and_kept_without(capfd):
    with pytest.raises(OSError), guarded.held_stderr():  # noqa: PT011, PT012
        os.write(2, b"panicked\n")
        os.close(10**6)
    with guarded.held_stderr():
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"
