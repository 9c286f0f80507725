"""Reliable timing, and the metadata of results."""

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
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, NullFormatter

RESULTS = Path("runs/benchmarks")
"""Default output folder, so that a trial does not overwrite committed results."""

_PACKAGES = ("jaxrl-lm", "jax", "jaxlib", "flax", "optax", "numpy")


def timed(call: Callable[[], Any], *, repeats: int) -> dict[str, float]:
    """Seconds of a warmed-up call: minimum, median, maximum; waits for the device."""
    return _summary([_seconds(call) for _ in range(repeats)])


class Peer:
    """A peer program in its own interpreter that runs in alternation (see peers/turns.py)."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self) -> float:
        """Seconds of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer("seconds "))

    def finish(self) -> dict[str, str]:
        """Stop the program and return the versions measured."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        versions = json.loads(self._answer("done "))
        self._process.wait()
        return versions

    def _answer(self, prefix: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(prefix):
                return line.removeprefix(prefix)
        raise RuntimeError(f"the peer ended with code {self._process.wait()} before it responded; see its output")


def timed_against(peer: Peer, call: Callable[[], Any], *, repeats: int) -> dict[str, Any]:
    """Seconds of a warmed-up call and peer in alternation, because a machine's speed drifts.

    Returns:
        the seconds of both, and `speedup`, the median ratio of adjacent turns.
    """
    ours, theirs = [], []
    peer.turn()
    for _ in range(repeats):
        theirs.append(peer.turn())
        ours.append(_seconds(call))
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    return {
        "seconds": _summary(ours),
        "peer_seconds": _summary(theirs),
        "speedup": statistics.median(ratios),
        "peer_versions": peer.finish(),
    }


def timed_in_turns(calls: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of several calls, each once per round, because a machine's speed drifts."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(_seconds(call))
    return {name: _summary(values) for name, values in seconds.items()}


def first_call(call: Callable[[], Any]) -> float:
    """Seconds of the first call of a jitted function: tracing, compiling and one run."""
    return _seconds(call)


def program_memory_gb(compiled: jax.stages.Compiled) -> float:
    """Memory of a program as reported by XLA: arguments, results not aliased with them, and temporaries."""
    account: Any = compiled.memory_analysis()
    names = "argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes"
    return (sum(getattr(account, name) for name in names) - account.alias_size_in_bytes) / 1e9


def environment() -> dict[str, Any]:
    """Machine, versions and commit. Programs use one device."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices_used": 1,
        "devices_present": jax.device_count(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write a benchmark's results as JSON and print the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written: {path}")


def make_plain(axis: Axis) -> None:
    """Label the ticks of a linear or logarithmic axis with plain numbers such as 0.1, 64 and 8,192."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}


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
