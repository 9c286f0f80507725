"""`jaxrl-lm launch`: a training command on several hosts; `ray_cluster` and `ray_workers` need Ray."""

import os
import signal
from collections.abc import Mapping, Sequence

from jaxrl_lm.cli.commands import COMMANDS, find_command
from jaxrl_lm.cli.extras import needing
from jaxrl_lm.cli.options import parse_options
from jaxrl_lm.cli.processes import End, Job
from jaxrl_lm.cli.settings import LaunchConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.errors import Interrupted, RunFailedError
from jaxrl_lm.training.settings import RunConfig

_PASSED = ("PYTHONPATH", "JAX_", "XLA_", "LIBTPU_", "NCCL_", "HF_", "WANDB_", "JAXRL_LM_")
_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def run_launch(config: LaunchConfig) -> None:
    """Run the command on all workers until it ends.

    Raises:
        InputError: the command is none that several processes can run, or refused an input; or Ray cannot be used.
        RunFailedError: the run failed, or a process ended in another way.
        Interrupted: a signal stopped it.
    """
    check_command(config.command)
    job = Job(config.command, os.getcwd(), passed_on(os.environ, config.device))
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.update(_ray_settings(address, os.environ))
    with needing("ray", "launch --ray"):
        from jaxrl_lm.cli import ray_cluster  # here, because Ray reads its settings when it is imported
    ends, stopped_by = ray_cluster.run(job, config, address)
    raise_end(ends, config.workers, stopped_by)


def check_command(command: Sequence[str]) -> None:
    """Refuse a command line that would fail on every worker.

    Raises:
        InputError: it is missing, unknown, does not train, has a mistake, or says where the other processes are.
    """
    if not command:
        raise InputError("command: none is given; give it after --, such as -- grpo --model ... --out runs/x")
    name, options = find_command([*command])
    if not _trains(name):
        known = ", ".join(each for each in COMMANDS if _trains(each))
        raise InputError(f"command={name!r} cannot run on several hosts; those that can: {known}")
    settings = parse_options(name, COMMANDS[name].load_settings(), options)
    if settings.hosts.coordinator is not None:
        raise InputError(
            f"hosts.coordinator={settings.hosts.coordinator!r} in the command: launch connects the processes itself; "
            "leave --hosts.coordinator, --hosts.num-processes and --hosts.process-id out"
        )


def _trains(name: str) -> bool:
    return issubclass(COMMANDS[name].load_settings(), RunConfig)


def _ray_settings(address: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for Ray: no usage statistics unless the user wants them, and no second start on other hosts."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": environment.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it would start the command again, without --resume
    }
    if address == "local":
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # also on Linux: listen on 127.0.0.1 only
    return settings


def passed_on(environment: Mapping[str, str], device: str) -> dict[str, str]:
    """The variables that workers take over; without JAX_PLATFORMS, a missing device is an error, not a slow run."""
    kept = {name: value for name, value in environment.items() if name.startswith(_PASSED)}
    return {"JAX_PLATFORMS": _PLATFORMS[device]} | kept


def raise_end(ends: Sequence[End], num_workers: int, stopped_by: int | None) -> None:
    """Raise what the first process that failed says; the others follow from it.

    Args:
        ends: how the processes ended, in this order.
        num_workers: how many there were.
        stopped_by: the signal that the launcher received, if any.

    Raises:
        InputError: the command refused an input.
        RunFailedError: the run failed, or a process ended in another way.
        Interrupted: a signal stopped it.
    """
    first = next((end for end in ends if end.code != 0), None)
    if first is None:
        if len(ends) < num_workers:
            raise RunFailedError(f"{num_workers - len(ends)} of {num_workers} processes were lost; see Ray's logs")
        return
    number = first.code - 128 if first.code > 128 else -first.code
    if number in (signal.SIGINT, signal.SIGTERM):
        raise Interrupted(first.message or "stopped", stopped_by or number)
    if first.message is not None and first.code == 2:
        raise InputError(first.message)
    if first.message is not None:
        raise RunFailedError(first.message)
    how = f"with code {first.code}" if first.code > 0 else f"by signal {number}"
    raise RunFailedError(f"process {first.process} on {first.host} ended {how}; its last output:\n{first.tail}")
