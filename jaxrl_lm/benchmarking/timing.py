"""Reliable timing, and the metadata of results."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jaxrl-lm", "jax", "jaxlib", "flax", "optax", "numpy")


def timed(call: Callable[[], Any], *, repeats: int) -> dict[str, float]:
    """Seconds of a warmed-up call: minimum, median, maximum; waits for the device."""
    return summary([seconds_of(call) for _ in range(repeats)])


def timed_in_turns(calls: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of several calls, each once per round, because a machine's speed drifts."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call))
    return {name: summary(values) for name, values in seconds.items()}


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of one call; of the first one of a jitted function: tracing, compiling and one run."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def summary(seconds: list[float]) -> dict[str, float]:
    """Minimum, median, maximum."""
    return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}


def program_memory_gb(compiled: jax.stages.Compiled) -> float:
    """Memory of a program as reported by XLA: arguments, results not aliased with them, and temporaries."""
    account: Any = compiled.memory_analysis()
    names = "argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes"
    return (sum(getattr(account, name) for name in names) - account.alias_size_in_bytes) / 1e9


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    return {
        "device": device_name(),
        "devices_present": jax.device_count(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def device_name() -> str:
    """JAX's name of the device; of a CPU, its model and number of cores."""
    kind = jax.devices()[0].device_kind
    return f"{_processor()}, {os.cpu_count()} cores" if kind == "cpu" else kind


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """The commit of the checkout that the package is in; "unknown" for an installed package."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"
