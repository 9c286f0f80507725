"""What runs on the workers of `jaxrl-lm launch --ray`: one process with the command on each.

Ray runs a training function in a thread of its worker. There Python receives no signals, so a run could not be stopped
and rewards would have no time limit; JAX ends the whole worker when another process is lost; and JaxTrainer connects no
CPUs. So the function starts the command in a process of its own, which meets the others through `--hosts.coordinator`.
"""

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.train import get_context
from ray.train.collective import broadcast_from_rank_zero

from jaxrl_lm.cli.processes import End, Job

_PAUSE = 0.3  # seconds between looks at the board
_GRACE = 10.0  # seconds for the other processes to end after one has failed
_NUM_TAIL_LINES = 20
_SAID = "jaxrl-lm: "


@dataclass(frozen=True)
class News:
    """What happened on the workers.

    Attributes:
        lines: new output of process 0.
        num_started: processes that were started.
        ends: those that ended, in this order.
    """

    lines: list[str]
    num_started: int
    ends: list[End]


class Board:
    """An actor on which workers tell the launcher what happens, and find what they shall do."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._num_started = 0
        self._ends: list[End] = []
        self._is_stopping = False
        self._failed_at = math.inf

    def start(self) -> None:
        """A worker has started its process."""
        self._num_started += 1

    def say(self, line: str) -> None:
        """Process 0 has printed a line."""
        self._lines.append(line)

    def end(self, end: End) -> None:
        """A process has ended."""
        self._ends.append(end)
        if end.code != 0:
            self._failed_at = min(self._failed_at, time.monotonic())

    def stop(self) -> None:
        """Let all processes save and stop."""
        self._is_stopping = True

    def order(self) -> Literal["run", "stop", "kill"]:
        """What a worker shall do with its process."""
        if time.monotonic() - self._failed_at > _GRACE:
            return "kill"
        return "stop" if self._is_stopping else "run"

    def take(self) -> News:
        """What is new; lines are given once."""
        lines, self._lines = self._lines, []
        return News(lines, self._num_started, self._ends)


def work(job: Job, board: Any) -> None:
    """Run a job on this worker, called by Ray Train on each."""
    number = get_context().get_world_rank()
    address = broadcast_from_rank_zero(f"{ray.util.get_node_ip_address()}:{_free_port()}")
    hosts = ["--hosts.coordinator", address, "--hosts.num-processes", str(get_context().get_world_size())]
    host = socket.gethostname()
    if not os.path.isdir(job.folder):
        message = f"working directory {job.folder!r} is missing on {host}; start launch in one that all hosts have"
        ray.get(board.end.remote(End(number, host, 2, message)))
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxrl_lm.cli.main", *job.command, *hosts, "--hosts.process-id", str(number)],
        cwd=job.folder,
        env=os.environ | job.environment | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C must not reach it a second time
    )
    ray.get(board.start.remote())
    threading.Thread(target=_obey, args=(process, board), daemon=True).start()
    message, tail = _read_output(process, board if number == 0 else None)
    ray.get(board.end.remote(End(number, host, process.wait(), message, tail)))


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


def _obey(process: subprocess.Popen[str], board: Any) -> None:
    """Do with the process what the board says, until it ends; it does not outlive the launcher."""
    is_told = False
    while process.poll() is None:
        try:
            order = ray.get(board.order.remote())
        except RayError:
            order = "kill"
        if order == "kill":
            process.kill()
        elif order == "stop" and not is_told:
            process.terminate()
            is_told = True
        time.sleep(_PAUSE)


def _read_output(process: subprocess.Popen[str], board: Any | None) -> tuple[str | None, str]:
    """Pass the output on, to the board or into the worker's log; returns what it said last, and its last lines.

    What it says is left out: the launcher says it.
    """
    assert process.stdout is not None
    message, tail = None, deque[str](maxlen=_NUM_TAIL_LINES)
    for line in process.stdout:
        tail.append(line)
        if line.startswith(_SAID):
            message = line.removeprefix(_SAID).rstrip("\n")
        elif board is not None:
            board.say.remote(line)
        else:
            sys.stdout.write(line)
    return message, "".join(tail).rstrip("\n")
