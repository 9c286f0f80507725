"""Compile a run's programs for a slice and read what they need: memory by part, FLOPs, traffic, a roofline."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from jaxrl_lm import storage
from jaxrl_lm.core.flops import count_flops
from jaxrl_lm.distributed.mesh import make_mesh
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.pretrained import read_config
from jaxrl_lm.training.language_model import check_batch, check_fits
from jaxrl_lm.training.planning.collectives import collective_bytes
from jaxrl_lm.training.planning.config import PlanConfig
from jaxrl_lm.training.planning.programs import PlannedRun, Program, plan_run
from jaxrl_lm.training.planning.slices import GENERATIONS, Slice, find_slice, slices_of
from jaxrl_lm.types import PyTree

PRESETS = Path(__file__).parents[2] / "assets" / "configs"
_RESERVED = 0.02  # share of the memory that the runtime keeps
_FAST = {"exec_time_optimization_effort": -1.0}
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """What one program needs.

    Attributes:
        peak_bytes: most memory that a device needs while it runs, with everything that stays, bytes.
        temporary_bytes: of these, what only this program needs: activations, gradients, caches.
        flops: floating-point operations of its matrix products, over all devices.
        collective_bytes: bytes that a device receives, by kind of collective.
        compute_seconds: FLOPs at the chips' peak.
        memory_seconds: reading what every step reads at the memory's bandwidth; activations are not counted.
        network_seconds: collectives at the interconnect's bandwidth.
        compile_seconds: time to compile.
    """

    peak_bytes: float
    temporary_bytes: float
    flops: float
    collective_bytes: dict[str, float]
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    compile_seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Whether a run fits on a slice, and why.

    Attributes:
        slice: name of the slice.
        num_chips: its chips.
        mesh: sizes of the mesh's axes.
        platform: "tpu", or "cpu" for virtual devices.
        device_bytes: memory that a device has for a run, bytes.
        parts: what stays in a device's memory during the whole run, bytes by name.
        programs: by name.
    """

    slice: str
    num_chips: int
    mesh: dict[str, int]
    platform: str
    device_bytes: float
    parts: dict[str, float]
    programs: dict[str, ProgramPlan]

    @property
    def peak_bytes(self) -> float:
        """Most memory that a device needs."""
        return max(program.peak_bytes for program in self.programs.values())

    @property
    def fits(self) -> bool:
        """Whether a device has as much."""
        return self.peak_bytes <= self.device_bytes


def use_described_devices(num_virtual: int) -> str:
    """Prepare this process for devices that it does not have; call it before JAX uses any device.

    Args:
        num_virtual: CPU devices where libtpu is not installed.

    Returns:
        "tpu", or "cpu" for virtual devices.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if importlib.util.find_spec("libtpu") is None:
        flag = f"--xla_force_host_platform_device_count={num_virtual}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
        return "cpu"
    # libtpu asks Google's metadata server unless told where it runs.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # no TPU is used, so plans need not wait for each other
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    return "tpu"


def make_plan(config: PlanConfig, platform: str) -> Plan:
    """The plan of a run on a slice, or on the smallest one of a generation that it fits on.

    Raises:
        InputError: model or slice are not known, or the mesh does not divide the model.
    """
    folder = find_model(config.model)
    if config.slice in GENERATIONS:
        return _search(config)
    return _cached(config, folder, find_slice(config.slice), platform)


def find_model(name: str) -> Path:
    """The folder with a model's config.json: one of the package's, a folder, or a download of that one file.

    Raises:
        InputError: there is none.
    """
    if (PRESETS / name / "config.json").is_file():
        return PRESETS / name
    folder = Path(name).expanduser()
    if folder.name == "config.json" and folder.is_file():
        return folder.parent
    if folder.is_dir():
        return folder
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json")).parent
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        presets = ", ".join(sorted(each.name for each in PRESETS.iterdir()))
        raise InputError(
            f"model={name!r} is not a folder, and its config.json could not be downloaded ({type(error).__name__}); "
            f"give a folder with config.json, or one of {presets}"
        ) from error


def _search(config: PlanConfig) -> Plan:
    """The plan for the smallest slice that fits; for the largest that the batch can be split over if none does."""
    plan, reason = None, None
    for each in slices_of(config.slice):
        if plan is not None and plan.peak_bytes > 4 * plan.device_bytes:
            needed = plan.num_chips * plan.peak_bytes / plan.device_bytes
            if each.num_chips < needed / 4:
                continue
        try:
            plan = _in_a_process(replace(config, slice=each.name))
        except InputError as error:  # the mesh does not divide the model or the batch, or the compiler crashed
            reason = reason or error
            continue
        if plan.fits:
            return plan
    if plan is None:
        assert reason is not None
        raise reason
    return plan


def _in_a_process(config: PlanConfig) -> Plan:
    """The plan of one slice, made in a process of its own: TPUs' compiler sometimes crashes.

    Raises:
        InputError: what the process said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        settings, out = Path(scratch) / "plan.yaml", Path(scratch) / "plan.json"
        settings.write_text(yaml.safe_dump(asdict(replace(config, out=str(out)))))
        command = [sys.executable, "-m", "jaxrl_lm.cli.main", "plan", "--config", str(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not out.exists():
            said = done.stderr.strip().removeprefix("jaxrl-lm: ")
            raise InputError(said if done.returncode == 2 else f"slice={config.slice!r}: the compiler crashed")
        content = json.loads(out.read_text())
    return read_plan({name: content[name] for name in Plan.__dataclass_fields__})


def _cached(config: PlanConfig, folder: Path, slice_: Slice, platform: str) -> Plan:
    """A plan, from the cache of plans if the same was made before."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxrl-lm")}
    if platform == "tpu":
        versions["libtpu"] = importlib.metadata.version("libtpu")
    asked = asdict(replace(config, slice=slice_.name, out=None, model=""))
    source = [path.read_text() for path in sorted(Path(__file__).parents[2].rglob("*.py"))]
    text = json.dumps([asked, read_config(folder), versions, platform, source], sort_keys=True, default=str)
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxrl_lm" / "plans"
    file = root / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if file.is_file():
        return read_plan(json.loads(file.read_text()))
    plan = _compile_plan(config, folder, slice_, platform)
    root.mkdir(parents=True, exist_ok=True)
    storage.write_atomically(file, json.dumps(asdict(plan)))
    return plan


def read_plan(content: Mapping[str, Any]) -> Plan:
    """A plan from the JSON form of its fields."""
    programs = {name: ProgramPlan(**each) for name, each in content["programs"].items()}
    return Plan(**{**content, "programs": programs})


@cache
def _devices(slice_: Slice, platform: str) -> tuple[Any, ...]:
    if platform == "cpu":
        return tuple(jax.devices("cpu")[: slice_.num_devices])
    from jax.experimental import topologies

    options: dict[str, Any] = dict(slice_.chip.options)
    if slice_.num_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{slice_.generation}:{slice_.topology}"
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)


def _compile_plan(config: PlanConfig, folder: Path, slice_: Slice, platform: str) -> Plan:
    devices = _devices(slice_, platform)
    if len(devices) < slice_.num_devices:
        raise InputError(
            f"slice={slice_.name!r} has {slice_.num_devices} devices, but only {len(devices)} are described"
        )
    mesh = make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):  # of one device too: it says which platform the programs are traced for
        _check(config, folder)
        run = plan_run(config, folder, mesh)
        parts = {name: device_bytes(part) for name, part in run.parts.items()}
        programs = {
            name: _compile(program, run, parts, slice_, config.full_effort or platform == "cpu")
            for name, program in run.programs.items()
        }
    return Plan(
        slice=slice_.name,
        num_chips=slice_.num_chips,
        mesh=dict(mesh.shape),
        platform=platform,
        device_bytes=slice_.chip.device_bytes * (1 - _RESERVED),
        parts=parts,
        programs=programs,
    )


def _check(config: PlanConfig, folder: Path) -> None:
    from jaxrl_lm.models import model_from_config

    head = "reward" if config.algorithm == "reward-model" else None
    model = model_from_config(folder, head)
    check_fits(model)
    length, context = config.prompt_tokens + config.new_tokens, model.config.max_positions
    if length > context:
        raise InputError(
            f"prompt_tokens={config.prompt_tokens} and new_tokens={config.new_tokens} exceed the model's context of "
            f"{context} tokens; shorten one of them"
        )
    sizes = {"batch_size": config.batch_size, "micro_batch_size": config.micro_batch_size}
    check_batch({name: size for name, size in sizes.items() if size is not None})


def device_bytes(tree: PyTree) -> float:
    """Bytes of a tree of shapes with shardings on one device."""
    return float(
        sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf) for leaf in jax.tree.leaves(tree))
    )


def _itemsize(leaf: Any) -> int:
    return 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize


def _compile(
    program: Program, run: PlannedRun, parts: dict[str, float], slice_: Slice, is_full_effort: bool
) -> ProgramPlan:
    traced = program.function.trace(*program.args)
    flops = count_flops(traced.jaxpr, while_trips=program.while_trips)
    others = sum(size for name, size in parts.items() if name not in program.uses)
    resident = sum(size for name, size in parts.items())
    started = time.perf_counter()
    received: dict[str, float] = {}
    try:
        compiled = traced.lower().compile(compiler_options=None if is_full_effort else _FAST)
    except jax.errors.JaxRuntimeError as error:
        peak = others + _needed(error)
    else:
        memory: Any = compiled.memory_analysis()
        peak = others + memory.peak_memory_in_bytes
        received = collective_bytes(compiled.as_text())
    chip = slice_.chip
    return ProgramPlan(
        peak_bytes=peak,
        temporary_bytes=max(0.0, peak - resident),
        flops=flops,
        collective_bytes=received,
        compute_seconds=flops / (chip.tflops * 1e12 * slice_.num_chips),
        memory_seconds=program.while_trips
        * device_bytes(program.read)
        * chip.devices_per_chip
        / (chip.memory_gbs * 1e9),
        network_seconds=sum(received.values()) * chip.devices_per_chip / (chip.network_gbs * 1e9),
        compile_seconds=time.perf_counter() - started,
    )


def _needed(error: Exception) -> float:
    """Bytes that a program needs which the compiler refuses because a device has fewer."""
    match = _TOO_LARGE.search(str(error))
    if match is None:
        raise error
    return float(match[1]) * _UNITS[match[2]]


def advice(config: PlanConfig, plan: Plan) -> list[str]:
    """What to change where a run does not fit, the least costly first."""
    if plan.fits:
        return []
    temporary = max(program.temporary_bytes for program in plan.programs.values())
    found = []
    if temporary > sum(plan.parts.values()) / 4:
        if config.remat != "full":
            found.append("--remat full recomputes activations")
        if config.dtype != "bfloat16":
            found.append("--dtype bfloat16 halves activations and caches")
        if plan.programs["update"].temporary_bytes == temporary and config.algorithm in ("ppo", "rloo", "grpo"):
            size = (config.micro_batch_size or config.batch_size) // 2
            found += [f"--micro-batch-size {size} halves what an update holds at a time"] if size else []
        found.append(f"--batch-size {max(1, config.batch_size // 2)}")
    if plan.mesh["data"] > 1:
        found.append("--mesh.data 1 splits parameters over all devices")
    if config.critic == "model":
        found.append("--critic head needs no second model")
    chips = plan.num_chips * plan.peak_bytes / plan.device_bytes
    found.append(f"a slice of about {1 << int(np.ceil(np.log2(chips)))} chips, if all is split over them")
    return found
