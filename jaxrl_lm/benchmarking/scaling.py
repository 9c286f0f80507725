"""One and several devices: time, and whether the numbers stay the same.

A mesh splits the same work over more devices (strong scaling) or gives each as much as one had (weak). On a CPU the
devices are virtual: they share its cores, so times show what splitting costs, not what it gains.
"""

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_lm import distributed
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.benchmarking.config import BenchConfig
from jaxrl_lm.benchmarking.measuring import Figure
from jaxrl_lm.benchmarking.timing import seconds_of, summary
from jaxrl_lm.data import PackedRows
from jaxrl_lm.distributed.config import MeshConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import logical_axes
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.environments.algorithms import TrainPPOConfig
from jaxrl_lm.training.environments.task import load_task
from jaxrl_lm.training.environments.train import make_chunk
from jaxrl_lm.training.errors import RunFailedError
from jaxrl_lm.training.language_model import LoadedModel, check_fits, load_model
from jaxrl_lm.training.offline.sft import SFTRunConfig
from jaxrl_lm.training.planning.collectives import collective_bytes

VIRTUAL = "virtual devices that share the cores of one CPU: efficiencies show what splitting costs, not what it gains"


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
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunFailedError(
                f"the benchmark on virtual devices ended with {done.returncode}: {done.stderr[-2000:]}"
            )
        content = json.loads(out.read_text())
    return {name: Figure(**each) for name, each in content["figures"].items()}, content["notes"]


def _measure_here(config: BenchConfig) -> tuple[dict[str, Figure], list[str]]:
    """The figures on this process's devices, and a note for each case that cannot be."""
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    counts = [count for count in config.devices[1:] if count <= jax.device_count()]
    for name, unit, one, cases in _learners(config):
        base = one()
        figures[f"scale/{name}-1"] = _figure(base, base, 1, unit, is_same=True)
        for count, (how, (is_same, measure)) in itertools.product(counts, cases.items()):
            try:
                found = measure(count)
            except InputError as error:  # a mesh that does not divide the model or the batch
                notes.append(f"scale/{name}-{how}-{count}: {error}")
            else:
                figures[f"scale/{name}-{how}-{count}"] = _figure(found, base, count, unit, is_same=is_same)
    return figures, notes


Cases = dict[str, tuple[bool, Callable[[int], Measured]]]
"""By name: whether the updates are those of one device, and what measures them on several."""


def _learners(config: BenchConfig) -> Iterator[tuple[str, str, Callable[[], Measured], Cases]]:
    def environments(count: int) -> Measured:
        return measure_environment(config, count)

    yield "env", "steps/s", lambda: environments(1), {"data": (True, environments)}
    loaded = load_model(config.model_name, dtype=config.dtype, scan_layers=True)
    meshes: Cases = {
        axis: (True, lambda count, axis=axis: measure_update(config, loaded, axis, count))
        for axis in ("data", "fsdp", "tensor")
    }
    meshes["weak"] = (False, lambda count: measure_update(config, loaded, "data", count, is_weak=True))
    yield "lm", "tokens/s", lambda: measure_update(config, loaded, "data", 1), meshes


def _figure(found: Measured, base: Measured, count: int, unit: str, *, is_same: bool) -> Figure:
    """A figure with its efficiency: 1 if n devices do n times the work of one in the same time."""
    seconds = summary(found.seconds)
    rate, rate_of_one = (each.amount / summary(each.seconds)["median"] for each in (found, base))
    facts = {"efficiency": rate / rate_of_one / count}
    if is_same:
        pairs = zip(found.losses, base.losses, strict=True)
        facts["loss_error"] = max(abs(ours - theirs) / max(abs(theirs), 1e-6) for ours, theirs in pairs)
    facts |= {f"{name}_mb": size / 1e6 for name, size in found.received.items()}
    return Figure(value=rate, unit=unit, seconds=seconds, first_call=found.first_call, facts=facts)


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


def measure_update(
    config: BenchConfig, loaded: LoadedModel, axis: str, count: int, *, is_weak: bool = False
) -> Measured:
    """Supervised updates of a language model on a mesh with one axis.

    Args:
        config: sizes.
        loaded: the model, on one device.
        axis: "data", "fsdp" or "tensor".
        count: its devices.
        is_weak: each device has as many rows as one has without.

    Raises:
        InputError: the mesh does not divide the model.
    """
    axes = {"data": 1, "fsdp": 1, "tensor": 1} | {axis: count}
    rows = math.lcm(*config.devices) * (count if is_weak else 1)
    length = 2 * config.num_tokens
    with distributed.use_mesh(distributed.make_mesh(MeshConfig(**axes), jax.devices()[:count])):
        check_fits(loaded.model)
        params = distributed.place_params(loaded.params, logical_axes(loaded.model))
        learner = SFTRunConfig(model="", data="", out="").make_learner(loaded.model, num_updates=1000)
        state = distributed.init_state(learner.init, params, is_copied=True)
        ids = np.random.default_rng(0).integers(0, loaded.model.config.vocab_size, (1, rows, length), np.int32)
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
