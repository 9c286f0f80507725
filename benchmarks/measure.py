"""Timing that can be trusted, and the facts a figure must carry."""

import importlib.metadata
import json
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
    """Seconds of a call that has run once already: minimum, median, maximum; waits for the device."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}


def first_call(call: Callable[[], Any]) -> float:
    """Seconds of the first call of a jitted function: tracing, compiling and one run."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write a benchmark's figures as JSON and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written: {path}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    here = Path(__file__).resolve().parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=here, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"
