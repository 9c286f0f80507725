"""One measured figure, and what the devices can do at most."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_lm import distributed
from jaxrl_lm.benchmarking.timing import seconds_of, timed
from jaxrl_lm.training.accelerators import this_accelerator


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A rate; more is better.

    Attributes:
        value: units per second, from the median time.
        unit: what is counted.
        seconds: of a call: min, median, max.
        first_call: seconds of the first call, with compiling.
        flops: operations of products of a call.
        shares: of what the devices can do, by name: "products", "bandwidth" (both as measured) and "peak" (published).
        facts: further numbers, such as an efficiency.
    """

    value: float
    unit: str
    seconds: dict[str, float]
    first_call: float
    flops: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What one device can do, measured.

    Attributes:
        products: operations per second of a large matrix product, by dtype.
        bandwidth: bytes per second of a large sum of two arrays: two reads and a write.
        peak: published operations per second in bfloat16; None if the device is not in our table.
    """

    products: dict[str, float]
    bandwidth: float
    peak: float | None


def measure_ceilings(*, size: int, num_values: int, repeats: int) -> Ceilings:
    """Measure the first device.

    Args:
        size: side of the square matrices.
        num_values: float32 values of each array that is read or written.
        repeats: calls; the median counts.
    """
    products = {}
    for dtype in ("float32", "bfloat16"):
        matrix = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul)
        seconds_of(lambda product=product, matrix=matrix: product(matrix, matrix))
        seconds = timed(lambda product=product, matrix=matrix: product(matrix, matrix), repeats=repeats)
        products[dtype] = 2 * size**3 / seconds["median"]
    left, right = jnp.ones(num_values), jnp.ones(num_values)
    add = jax.jit(jnp.add)
    seconds_of(lambda: add(left, right))
    bandwidth = 3 * left.nbytes / timed(lambda: add(left, right), repeats=repeats)["median"]
    accelerator = this_accelerator()
    return Ceilings(
        products=products, bandwidth=bandwidth, peak=None if accelerator is None else accelerator.tflops * 1e12
    )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How figures are measured.

    Attributes:
        ceilings: of one device.
        repeats: calls after the first.
        profile: folder for traces, or None.
    """

    ceilings: Ceilings
    repeats: int
    profile: Path | None = None

    def measure(
        self,
        name: str,
        call: Callable[[], Any],
        *,
        amount: float,
        unit: str,
        dtype: str = "float32",
        num_bytes: float | None = None,
    ) -> Figure:
        """Measure a call on one device.

        Args:
            name: of the figure, for its trace.
            call: what is timed; it repeats the same work.
            amount: units of a call.
            unit: what is counted.
            dtype: of most products.
            num_bytes: that a call must read from memory, if that is known.
        """
        with distributed.counting() as work:
            first = seconds_of(call)
        seconds = timed(call, repeats=self.repeats)
        self.trace(name, call)
        return Figure(
            value=amount / seconds["median"],
            unit=unit,
            seconds=seconds,
            first_call=first,
            flops=work.flops,
            shares=self.shares(work.flops, seconds["median"], dtype, num_bytes),
        )

    def shares(self, flops: float, seconds: float, dtype: str, num_bytes: float | None = None) -> dict[str, float]:
        """Shares of what one device can do, of so much work in so many seconds."""
        found = {}
        if flops:
            found["products"] = flops / seconds / self.ceilings.products[dtype]
            if self.ceilings.peak is not None:
                found["peak"] = flops / seconds / self.ceilings.peak
        if num_bytes is not None:
            found["bandwidth"] = num_bytes / seconds / self.ceilings.bandwidth
        return found

    def trace(self, name: str, call: Callable[[], Any]) -> None:
        """Write a trace of one more call, if traces are asked for."""
        if self.profile is not None:
            with jax.profiler.trace(self.profile / name.replace("/", "-")):
                jax.block_until_ready(call())
