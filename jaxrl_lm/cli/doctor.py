"""`jaxrl-lm doctor`: devices, versions, and which commands use which devices."""

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

_PACKAGES = ("jaxrl-lm", "jax", "jaxlib", "flax", "optax", "transformers", "orbax-checkpoint", "numpy")
_EXTRAS = {
    "cuda": "jax-cuda13-plugin",
    "tpu": "libtpu",
    "data": "datasets",
    "label": "starlette",
    "ray": "ray",
    "wandb": "wandb",
}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Show devices, versions and which commands use which devices.

    Attributes:
        size: side of the square matrices in the speed test.
    """

    size: int = 2048


def run_doctor(config: DoctorConfig) -> None:
    """Print the details that a bug report or benchmark should include."""
    console = Console()
    console.print(_versions())
    console.print(_devices())
    rates = {dtype: _matmul_rate(config.size, dtype) for dtype in ("float32", "bfloat16")}
    console.print(_speeds(config.size, rates))
    console.print(f"{usage(jax.device_count(), jax.default_backend())} {advice(rates)}.")


def usage(num_devices: int, backend: str) -> str:
    """A sentence on how many devices each command uses."""
    if num_devices == 1:
        return f"All commands run on the one {backend} device."
    return (
        f"Commands run on 1 of the {num_devices} {backend} devices; jaxrl-lm train splits its environments across more "
        "with --num-devices (0 for all)."
    )


def advice(rates: dict[str, float]) -> str:
    """A sentence, without its full stop, on which dtype is faster."""
    if rates["bfloat16"] > rates["float32"]:
        return "bfloat16 products are faster here: use --dtype bfloat16 (parameters stay float32)"
    return "float32 products are faster here: keep --dtype float32"


def _versions() -> Table:
    table = Table("package", "version", title=f"Python {platform.python_version()}, {os.cpu_count()} cores")
    for name in _PACKAGES:
        table.add_row(name, _version(name) or "not installed")
    for extra, name in _EXTRAS.items():
        table.add_row(f"{name} (extra {extra})", _version(name) or f"pip install 'jaxrl-lm[{extra}]'")
    return table


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Table:
    table = Table("device", "kind", "memory in use", "memory", title=f"{jax.process_count()} process(es)")
    for device in jax.devices():
        stats: dict[str, Any] = device.memory_stats() or {}
        table.add_row(
            str(device),
            device.device_kind,
            _gigabytes(stats.get("bytes_in_use")),
            _gigabytes(stats.get("bytes_limit")),
        )
    return table


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"


def _speeds(size: int, rates: dict[str, float]) -> Table:
    table = Table("matrix product", "rate", title=f"{size} x {size}, best of 3")
    for dtype, rate in rates.items():
        table.add_row(dtype, f"{rate / 1e9:,.0f} GFLOP/s")
    return table


def _matmul_rate(size: int, dtype: Any) -> float:
    """Floating-point operations per second."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
