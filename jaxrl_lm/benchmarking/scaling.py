"""One and several devices: time, and whether the numbers stay the same.

A mesh splits the same batch over more devices (strong scaling), or each device gets as many rows however many there are
(weak scaling). On a CPU the devices are virtual: they share its cores, so times show what splitting costs, not what it
gains.
"""

import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_lm import distributed
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.benchmarking.config import BenchConfig
from jaxrl_lm.benchmarking.measuring import Figure
from jaxrl_lm.benchmarking.timing import seconds_of, summary
from jaxrl_lm.data import PackedRows
from jaxrl_lm.distributed.config import MeshConfig
from jaxrl_lm.envs.memory import as_gigabytes, available_bytes
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import logical_axes
from jaxrl_lm.models.params import num_params
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.environments.algorithms import TrainPPOConfig
from jaxrl_lm.training.environments.task import load_task
from jaxrl_lm.training.environments.train import make_chunk
from jaxrl_lm.training.errors import RunFailedError
from jaxrl_lm.training.language_model import LoadedModel, check_fits, load_model
from jaxrl_lm.training.observers import tell
from jaxrl_lm.training.offline.sft import SFTRunConfig
from jaxrl_lm.training.planning.collectives import collective_bytes

VIRTUAL = "virtual devices that share the cores of one CPU: efficiencies show what splitting costs, not what it gains"

_BYTES_PER_PARAMETER = 24  # of an update in float32: parameters, gradients, two moments, and two for what XLA copies


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Some updates on some devices.

    Attributes:
        amount: units of an update.
        seconds: of each update after the first.
        first_call: seconds of the first, with compiling.
        losses: of all.
        received: bytes that a device receives per update, by kind of collective.
    """

    amount: float
    seconds: list[float]
    first_call: float
    losses: list[float]
    received: dict[str, float]


def measure_scaling(config: BenchConfig) -> tuple[dict[str, Figure], list[str]]:
    """The figures of the suite scale, and what is to be said of them.

    Raises:
        RunFailedError: the process with virtual devices failed.
    """
    is_virtual = jax.default_backend() == "cpu"
    if is_virtual and jax.device_count() < max(config.devices):
        figures, notes = _measure_on_virtual_devices(config)
    else:
        figures, notes = _measure_here(config)
    return figures, [VIRTUAL, *notes] if is_virtual else notes


def _measure_on_virtual_devices(config: BenchConfig) -> tuple[dict[str, Figure], list[str]]:
    """The same in a process of its own: the number of virtual devices must be known before JAX starts."""
    flag = f"--xla_force_host_platform_device_count={max(config.devices)}"
    surroundings = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}", "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as scratch:
        settings, out = Path(scratch) / "settings.json", Path(scratch) / "out.json"
        settings.write_text(json.dumps(asdict(config)))
        command = [sys.executable, "-m", "jaxrl_lm.benchmarking.scaling", str(settings), str(out)]
        done = subprocess.run(command, env=surroundings, check=False)  # its progress goes to our standard error
        if done.returncode:
            raise RunFailedError(
                f"the benchmark on virtual devices ended with {done.returncode}; see its messages above"
            )
        content = json.loads(out.read_text())
    return {name: Figure(**each) for name, each in content["figures"].items()}, content["notes"]


class Series(NamedTuple):
    """The same updates on one device and on several.

    Attributes:
        name: of its figures.
        base: name of the figure of one device.
        unit: what is counted.
        is_same: whether the updates are those of one device, so that losses must be equal.
        measure: measures on a number of devices.
    """

    name: str
    base: str
    unit: str
    is_same: bool
    measure: Callable[[int], Measured]


def _measure_here(config: BenchConfig) -> tuple[dict[str, Figure], list[str]]:
    """The figures on this process's devices, and a note for each case that cannot be."""
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    counts = [count for count in config.devices if count <= jax.device_count()]
    for series, count in itertools.product(_all_series(config), counts):
        name = f"scale/{series.base if count == 1 else series.name}-{count}"
        if name in figures:
            continue
        tell(f"{name} ...")
        try:
            found = series.measure(count)
        except InputError as error:  # a mesh that does not divide the model or the batch
            notes.append(f"{name}: {error}")
        else:
            figures[name] = _figure(found, series.measure(1), count, series)
    return figures, notes


def _all_series(config: BenchConfig) -> list[Series]:
    """PPO in environments, and supervised updates of a language model on three meshes and with a growing batch."""

    @functools.cache
    def environment(count: int) -> Measured:
        return measure_environment(config, count)

    loaded = load_model(config.model_name, dtype=config.dtype, scan_layers=True)
    num_rows = math.lcm(*config.devices)

    @functools.cache
    def update(axis: str, count: int, rows: int) -> Measured:
        return measure_update(config, loaded, axis, count, rows)

    def strong(axis: str) -> Callable[[int], Measured]:
        return lambda count: update("data" if count == 1 else axis, count, num_rows)

    def weak(count: int) -> Measured:
        return update("data", count, count * num_rows // max(config.devices))

    return [
        Series("env-data", "env", "steps/s", True, environment),
        *(Series(f"lm-{axis}", "lm", "tokens/s", True, strong(axis)) for axis in ("data", "fsdp", "tensor")),
        Series("lm-weak", "lm-weak", "tokens/s", False, weak),
    ]


def _figure(found: Measured, base: Measured, count: int, series: Series) -> Figure:
    """A figure with its efficiency: 1 if n devices do n times the work of one in the same time."""
    seconds = summary(found.seconds)
    rate, rate_of_one = (each.amount / summary(each.seconds)["median"] for each in (found, base))
    facts = {"efficiency": rate / rate_of_one / count}
    if series.is_same:
        pairs = zip(found.losses, base.losses, strict=True)
        facts["loss_error"] = max(abs(ours - theirs) / max(abs(theirs), 1e-6) for ours, theirs in pairs)
    facts |= {f"{name}_mb": size / 1e6 for name, size in found.received.items()}
    return Figure(value=rate, unit=series.unit, seconds=seconds, first_call=found.first_call, facts=facts)


def measure_environment(config: BenchConfig, count: int) -> Measured:
    """PPO in mazes (CartPole, to be quick) that are spread over devices.

    Raises:
        InputError: the environments do not divide.
    """
    num_updates = 1 if config.quick else 4
    settings = TrainPPOConfig(
        out="",
        env="CartPole-v1" if config.quick else "Maze-v0",
        total_steps=10**9,
        num_envs=max(8, config.num_envs // 8),
        num_steps=8 if config.quick else 32,
        chunk_updates=num_updates,
        num_devices=count,
        eval_episodes=8,
        ppo=PPOConfig(num_epochs=2, num_minibatches=2, minibatch_unit="steps"),
    )
    task, state = load_task(settings)
    with tempfile.TemporaryDirectory() as scratch:
        chunk = make_chunk(task, RunFolder(Path(scratch)))

        def update(state: Any, number: int) -> tuple[Any, float]:
            state, numbers = chunk(state, number)
            return state, numbers["loss/total"]

        return _repeat(update, state, config.repeats, float(task.steps_per_chunk), {})


def measure_update(config: BenchConfig, loaded: LoadedModel, axis: str, count: int, num_rows: int) -> Measured:
    """Supervised updates of a language model on a mesh with one axis.

    Args:
        config: sizes.
        loaded: the model, on one device.
        axis: "data", "fsdp" or "tensor".
        count: its devices.
        num_rows: rows of a batch, over all devices.

    Raises:
        InputError: the mesh does not divide the model, or virtual devices need more memory than there is.
    """
    _check_memory(num_params(loaded.model), axis, count)
    axes = {"data": 1, "fsdp": 1, "tensor": 1} | {axis: count}
    length = 2 * config.num_tokens
    with distributed.use_mesh(distributed.make_mesh(MeshConfig(**axes), jax.devices()[:count])):
        check_fits(loaded.model)
        params = distributed.place_params(loaded.params, logical_axes(loaded.model))
        learner = SFTRunConfig(model="", data="", out="").make_learner(loaded.model, num_updates=1000)
        state = distributed.init_state(learner.init, params, is_copied=True)
        ids = np.random.default_rng(0).integers(0, loaded.model.config.vocab_size, (1, num_rows, length), np.int32)
        is_target = np.broadcast_to(np.arange(length) > 0, ids.shape)
        batch = distributed.place_batch(PackedRows(ids, np.ones_like(ids), is_target), num_leading=1)
        program = distributed.update_program(learner.update, state)
        started = time.perf_counter()
        compiled = program.lower(state, batch).compile()
        compiling = time.perf_counter() - started

        def update(state: Any, number: int) -> tuple[Any, float]:
            del number
            state, metrics = compiled(state, batch)
            return state, float(metrics["loss/total"])

        received = collective_bytes(compiled.as_text()) if count > 1 else {}
        found = _repeat(update, state, config.repeats, float(ids.size), received)
    return replace(found, first_call=compiling + found.first_call)


def _check_memory(num_parameters: int, axis: str, count: int) -> None:
    """Check that the copies of a model on virtual devices fit into the memory that they share.

    Raises:
        InputError: they do not.
    """
    if jax.default_backend() != "cpu":
        return
    copies = count if axis == "data" else 1
    needed, available = copies * _BYTES_PER_PARAMETER * num_parameters, available_bytes()
    if needed > available:
        raise InputError(
            f"{copies} copies of the model take about {as_gigabytes(needed)} of {as_gigabytes(available)}; choose a "
            "smaller model or fewer devices"
        )


def _repeat(
    update: Callable[[Any, int], tuple[Any, float]],
    state: Any,
    repeats: int,
    amount: float,
    received: dict[str, float],
) -> Measured:
    holder, losses, seconds = [state], list[float](), list[float]()

    def call(number: int) -> Any:
        holder[0], loss = update(holder[0], number)
        losses.append(loss)
        return holder[0]

    for number in range(repeats + 1):
        seconds.append(seconds_of(lambda number=number: call(number)))
    return Measured(amount=amount, seconds=seconds[1:], first_call=seconds[0], losses=losses, received=received)


def _main(settings: str, out: str) -> None:
    """Measure with settings from a file, and write figures and notes to another."""
    given: dict[str, Any] = json.loads(Path(settings).read_text())
    given |= {name: tuple(given[name]) for name in ("suite", "devices")}
    config = BenchConfig(**given)
    figures, notes = _measure_here(config)
    content = {"figures": {name: asdict(figure) for name, figure in figures.items()}, "notes": notes}
    Path(out).write_text(json.dumps(content))


if __name__ == "__main__":
    _main(*sys.argv[1:])
