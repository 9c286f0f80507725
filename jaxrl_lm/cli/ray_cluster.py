"""The launcher's side of `jaxrl-lm launch --ray`: JaxTrainer places the workers, and this waits for them."""

import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.jax import JaxConfig, JaxTrainer
from ray.util.tpu import get_tpu_worker_resources

from jaxrl_lm.cli.processes import End, Job
from jaxrl_lm.cli.ray_workers import Board, work
from jaxrl_lm.cli.settings import LaunchConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.errors import Interrupted, RunFailedError
from jaxrl_lm.training.observers import tell

_PAUSE = 0.3  # seconds between looks at the board
_REACH = 10.0  # seconds for a cluster to answer
_PATIENCE = 60.0  # seconds until it is said what the launcher waits for


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
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=_REACH).close()  # Ray would try for minutes
        ray.init(**options)
    except (RayError, OSError, OverflowError, ValueError, RuntimeError) as error:
        raise InputError(
            f"address={address!r}: Ray cannot be used there ({error}); give HOST:PORT of a cluster that ray start has "
            "started (with RAY_AUTH_MODE=token and the cluster's token, if it wants one), auto on one of its machines, "
            "or local for this machine alone"
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
