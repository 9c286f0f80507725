"""One command in one process on each of several workers, which Ray Train's JaxTrainer places.

Ray runs a training function in a thread of its worker. There Python receives no signals, so a run could not be stopped
and rewards would have no time limit; JAX ends the whole worker when another process is lost; and JaxTrainer connects no
CPUs. So the function starts the command in a process of its own, which meets the others through `--hosts.coordinator`.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.jax import JaxConfig, JaxTrainer
from ray.util.tpu import get_tpu_worker_resources

from jaxrl_lm.cli.launch import End, Job
from jaxrl_lm.cli.settings import LaunchConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.errors import Interrupted, RunFailedError
from jaxrl_lm.training.observers import tell

_PAUSE = 0.3  # seconds between looks at the board
_GRACE = 10.0  # seconds for the other processes to end after one has failed
_PATIENCE = 60.0  # seconds until it is said what the launcher waits for
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


def run(job: Job, config: LaunchConfig, address: str) -> tuple[list[End], int | None]:
    """Run a job on all workers until it has ended everywhere.

    Args:
        job: what to run.
        config: where to run it.
        address: of the Ray cluster; "local" starts one on this machine.

    Returns:
        how the processes ended, in this order, and the signal that this process received, if any.

    Raises:
        InputError: there is no such cluster, or it cannot have these workers.
        RunFailedError: Ray failed.
        Interrupted: a signal came before any process was started.
    """
    with tempfile.TemporaryDirectory(prefix="jaxrl_lm-ray-") as folder:
        _connect(config, address)
        try:
            board = ray.remote(num_cpus=0)(Board).remote()
            trainer = JaxTrainer(
                partial(work, job, board),
                jax_config=JaxConfig(use_tpu=False, use_gpu=False),  # the command's process connects, not the worker
                scaling_config=scaling(config),
                run_config=RunConfig(name="jaxrl_lm", storage_path=folder),
            )
            return _watch(trainer.fit, board, config)
        finally:
            ray.shutdown()


def _connect(config: LaunchConfig, address: str) -> None:
    """Connect with a cluster, or start one on this machine."""
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options["num_cpus"] = max(os.cpu_count() or 1, math.ceil(config.workers * config.resources().get("CPU", 1)))
        options["include_dashboard"] = False
    elif "PYTHONPATH" in os.environ:
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    try:
        ray.init(**options)
    except (RayError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"address={address!r}: Ray cannot be used there ({error}); give HOST:PORT of a cluster that ray start has "
            "started, auto on one of its machines, or local for this machine alone"
        ) from error
    if address == "local":
        _check_resources(config)


def _check_resources(config: LaunchConfig) -> None:
    """Refuse what a cluster of this machine alone never has; another cluster may grow."""
    needed = ({"GPU": 1} if config.device == "gpu" else {}) | config.resources()
    found = ray.cluster_resources()
    for key, value in needed.items():
        if value * config.workers > found.get(key, 0):
            raise InputError(
                f"resources_per_worker: workers={config.workers} with {key}={value:g} each need more than the "
                f"{found.get(key, 0):g} of this machine; ask for less, or give the --address of a Ray cluster"
            )


def scaling(config: LaunchConfig) -> ScalingConfig:
    """How many workers Ray Train places, and on what.

    Raises:
        InputError: the TPU slice is none of Ray's, or has another number of hosts.
    """
    try:
        if config.topology is not None and config.accelerator_type is not None:
            num_hosts, _ = get_tpu_worker_resources(
                config.topology, config.accelerator_type, config.resources() or None, num_slices=1
            )
            if config.workers != num_hosts:
                raise ValueError(f"a slice of this kind has {num_hosts} workers, and a run uses one slice")
        return ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.device == "gpu",
            use_tpu=config.device == "tpu",
            resources_per_worker=config.resources() or None,
            placement_strategy="SPREAD",
            topology=config.topology,
            accelerator_type=config.accelerator_type,
        )
    except ValueError as error:
        raise InputError(
            f"workers={config.workers}, device={config.device}, topology={config.topology}, "
            f"accelerator_type={config.accelerator_type} do not fit: {error}"
        ) from error


def _watch(fit: Callable[[], Any], board: Any, config: LaunchConfig) -> tuple[list[End], int | None]:
    """Fit in a thread, which leaves this one to signals and to the output of process 0."""
    errors: list[Exception] = []
    thread = threading.Thread(target=_collecting(fit, errors), daemon=True)
    begun, is_patient, stopped_by = time.monotonic(), True, None
    with _first_signal() as received:
        thread.start()
        while True:
            is_last = not thread.is_alive()
            news: Any = ray.get(board.take.remote())
            sys.stdout.writelines(news.lines)
            sys.stdout.flush()
            if is_last:
                break
            if received and stopped_by is None:
                stopped_by = received[0]
                if news.num_started == 0:
                    raise Interrupted("stopped before any process was started", stopped_by)
                ray.get(board.stop.remote())
            if is_patient and news.num_started == 0 and time.monotonic() - begun > _PATIENCE:
                is_patient = False
                tell(f"waiting for Ray to start {config.workers} workers; free in the cluster: {_free_resources()}")
            thread.join(_PAUSE)
    if errors and not any(end.code for end in news.ends):
        raise RunFailedError(f"Ray: {errors[0]}") from errors[0]
    return news.ends, stopped_by


def _free_resources() -> str:
    """What the cluster has left, without Ray's own bookkeeping."""
    found = ray.available_resources()
    return " ".join(f"{key}={value:g}" for key, value in sorted(found.items()) if ":" not in key and "_" not in key)


def _collecting(function: Callable[[], Any], errors: list[Exception]) -> Callable[[], None]:
    def call() -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    return call


@contextmanager
def _first_signal() -> Iterator[list[int]]:
    """A list that gets the number of the first signal; the second one ends this process."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def receive(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that Ray is shut down

    previous = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
