"""A command in a forked process that is killed, or finds the disk full, at one of its file-system events."""

import atexit
import errno
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that change files, and which of their arguments are paths, each with the argument that is the
# descriptor of the folder that the path is relative to.
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.rename": ((0, 2), (1, 3)),  # os.replace too
    "os.remove": ((0, 1),),  # os.unlink too
    "os.mkdir": ((0, 2),),  # `os.mkdir(path, mode, dir_fd)`
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
}
_NEEDS_SPACE = frozenset({"open", "os.rename", "os.mkdir", "os.link", "os.symlink"})

Fault = Literal["none", "kill before", "kill after", "kill at a time", "full disk"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens to a command, and when.

    Attributes:
        fault: "kill before" an event, "kill after" it, "kill at a time", or from an event on a "full disk".
        event: index of the event, from 0.
        seconds: after the event, or after the start.
    """

    fault: Fault = "none"
    event: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; -9 if it was killed.
        said: what it printed on standard output and standard error.
        num_events: file-system events in its folder; -1 where it was killed.
        seconds: how long it took.
    """

    code: int
    said: str
    num_events: int
    seconds: float

    @property
    def is_killed(self) -> bool:
        return self.code == -signal.SIGKILL


def run_forked(command: Callable[[], int], folder: Path, plan: Plan, log: Path) -> Ended:
    """Run a command in a forked process, as its own program would run it, exit handlers included.

    Args:
        command: returns its exit code.
        folder: where file-system events count.
        plan: what is to happen.
        log: a file for what the command prints; a second one next to it is for the number of events.
    """
    counter = log.with_suffix(".count")
    counter.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    child = os.fork()
    if not child:
        _be_the_command(command, folder, plan, log, counter)
    _, status = os.waitpid(child, 0)
    return Ended(
        code=os.waitstatus_to_exitcode(status),
        said=log.read_text(encoding="utf-8", errors="replace"),
        num_events=int(counter.read_text()) if counter.exists() else -1,
        seconds=time.monotonic() - began,
    )


def _be_the_command(command: Callable[[], int], folder: Path, plan: Plan, log: Path, counter: Path) -> None:
    """Run the command and end the process, without a return to the caller's stack."""
    code = 70
    gc.disable()
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        watch = _Watch(folder, plan)
        sys.addaudithook(watch)
        if plan.fault == "kill at a time":
            _kill_after(plan.seconds)
        code = command()
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        counter.write_text(str(watch.num_events))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Watch:
    """An audit hook that counts events and lets the planned one fail."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.num_events = 0
        self._folder = str(folder.absolute())
        self._plan = plan
        self._lock = threading.Lock()

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        if not any(self._is_inside(path) for path in _changed_paths(name, args)):
            return
        with self._lock:
            index = self.num_events
            self.num_events += 1
        plan = self._plan
        if plan.fault == "kill before" and index == plan.event:
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.fault == "kill after" and index == plan.event:
            _kill_after(plan.seconds)
        if plan.fault == "full disk" and index >= plan.event and name in _NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_inside(self, path: str) -> bool:
        return path == self._folder or path.startswith(f"{self._folder}{os.sep}")


def _kill_after(seconds: float) -> None:
    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def _changed_paths(name: str, args: tuple[Any, ...]) -> list[str]:
    """Absolute paths of what an audit event changes; none if it only reads."""
    if name == "open":
        path, _, flags = args
        return [_absolute(path, -1)] if isinstance(flags, int) and flags & _WRITES else []
    return [_absolute(args[path], -1 if of is None else args[of]) for path, of in _CHANGES.get(name, ())]


def _absolute(path: Any, folder: Any) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    path = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        return os.path.normpath(os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path))
    return os.path.abspath(path)
