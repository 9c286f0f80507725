"""What accelerators can do at most, and the power they are designed for, by the name that JAX gives them.

Figures of GPUs are from NVIDIA's data sheets (H100, H200, A100, L4) and its Ada architecture white paper (RTX 4090):
dense bfloat16 products summed in float32, memory bandwidth, thermal design power. Those of TPUs are in
`planning/slices.py`; Google published a power for v4 alone.

Reference: Jouppi et al., TPU v4: An Optically Reconfigurable Supercomputer, 2023.
"""

from dataclasses import dataclass

import jax

from jaxrl_lm.training.planning.slices import GENERATIONS


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One of JAX's devices.

    Attributes:
        tflops: dense bfloat16 products, 1e12 operations per second.
        memory_gbs: memory bandwidth, 1e9 bytes per second.
        watts: thermal design power, or the most that was measured; None where none is published.
    """

    tflops: float
    memory_gbs: float
    watts: float | None


def _tpu(generation: str, watts: float | None = None) -> Accelerator:
    chip = GENERATIONS[generation]
    share = 1 / chip.devices_per_chip
    return Accelerator(tflops=share * chip.tflops, memory_gbs=share * chip.memory_gbs, watts=watts)


ACCELERATORS: dict[str, Accelerator] = {
    "NVIDIA H200": Accelerator(tflops=989.4, memory_gbs=4800.0, watts=700.0),
    "NVIDIA H100 80GB HBM3": Accelerator(tflops=989.4, memory_gbs=3350.0, watts=700.0),
    "NVIDIA H100 PCIe": Accelerator(tflops=756.0, memory_gbs=2039.0, watts=350.0),
    "NVIDIA A100-SXM4-80GB": Accelerator(tflops=312.0, memory_gbs=2039.0, watts=400.0),
    "NVIDIA A100-SXM4-40GB": Accelerator(tflops=312.0, memory_gbs=1555.0, watts=400.0),
    "NVIDIA A100 80GB PCIe": Accelerator(tflops=312.0, memory_gbs=1935.0, watts=300.0),
    "NVIDIA A100-PCIE-40GB": Accelerator(tflops=312.0, memory_gbs=1555.0, watts=250.0),
    "NVIDIA L4": Accelerator(tflops=121.0, memory_gbs=300.0, watts=72.0),
    "NVIDIA GeForce RTX 4090": Accelerator(tflops=165.2, memory_gbs=1008.0, watts=450.0),
    "TPU v4": _tpu("v4", 192.0),
    "TPU v5 lite": _tpu("v5e"),
    "TPU v5e": _tpu("v5e"),
    "TPU v5": _tpu("v5p"),
    "TPU v5p": _tpu("v5p"),
    "TPU v6 lite": _tpu("v6e"),
    "TPU v6e": _tpu("v6e"),
    "TPU7x": _tpu("tpu7x"),
}
"""By `jax.Device.device_kind`."""


def this_accelerator() -> Accelerator | None:
    """The first of JAX's devices; None if it is a CPU or not in the table."""
    return ACCELERATORS.get(jax.devices()[0].device_kind)
