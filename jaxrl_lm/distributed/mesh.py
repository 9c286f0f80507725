"""The mesh of a run: which devices there are, and in which shape."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxrl_lm.distributed.config import MeshConfig
from jaxrl_lm.distributed.sharding import AXES
from jaxrl_lm.errors import InputError


def mesh_shape(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Sizes of the axes for a number of devices.

    Raises:
        InputError: the axes do not use all devices; names what would.
    """
    sizes = asdict(config)
    open_axes = [axis for axis in AXES if sizes[axis] == 0]
    fixed = math.prod(size for size in sizes.values() if size)
    shown = ", ".join(f"mesh.{axis}={sizes[axis]}" for axis in AXES)
    if len(open_axes) > 1:
        raise InputError(f"{shown}: only one axis can be 0, which uses the devices that the others leave; give numbers")
    divisors = " or ".join(str(each) for each in range(1, num_devices + 1) if num_devices % each == 0)
    if num_devices % fixed or (not open_axes and fixed != num_devices):
        raise InputError(
            f"{shown}: the product of the axes must be the number of devices, {num_devices}; each axis can be "
            f"{divisors}, and one of them 0 for the rest"
        )
    if open_axes:
        sizes[open_axes[0]] = num_devices // fixed
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh with axes `data, fsdp, tensor`; neighbours in the last axes are neighbours in the network.

    Args:
        config: sizes of the axes.
        devices: None for all.

    Raises:
        InputError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(config, len(devices))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)


@contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Programs that are traced inside constrain their activations to this mesh; one device needs none."""
    if mesh is None or mesh.size == 1:
        yield
        return
    with jax.set_mesh(mesh):
        yield
