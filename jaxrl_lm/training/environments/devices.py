"""Where a run's state is kept: its environments spread over devices, and whether it fits into their memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_lm.distributed.config import MeshConfig
from jaxrl_lm.distributed.mesh import make_mesh
from jaxrl_lm.distributed.sharding import put_on
from jaxrl_lm.envs.memory import as_gigabytes, available_bytes
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.types import NO_BATCH_AXIS, PyTree


def count_devices(config: EnvironmentRunConfig) -> int:
    """Devices that a run uses.

    Raises:
        InputError: there are not so many, or they do not divide the environments.
    """
    num_devices = config.num_devices or jax.device_count()
    num_envs = config.agent.num_envs
    if num_devices > jax.device_count():
        raise InputError(f"num_devices={num_devices}: only {jax.device_count()} available; choose 0 for all")
    if num_envs % num_devices:
        raise InputError(f"num_envs={num_envs} is not a multiple of num_devices={num_devices}; choose a multiple")
    return num_devices


def place(state: PyTree, batch_axes: Callable[[PyTree], PyTree], config: EnvironmentRunConfig) -> Any:
    """Spread the environments over the devices asked for; everything else is copied to each of them.

    Args:
        state: an `EnvironmentState`.
        batch_axes: of the algorithm, for one learner.
        config: the run's settings.

    Raises:
        InputError: there are not so many devices, or they do not divide the environments.
    """
    num_devices = count_devices(config)
    if num_devices == 1:
        return state
    if num_devices < jax.device_count() and jax.process_count() > 1:
        raise InputError(f"num_devices={num_devices}: several processes train on all devices; give 0")
    mesh = make_mesh(MeshConfig(data=num_devices, fsdp=1), jax.devices()[:num_devices])

    def put(leaf: jax.Array, axis: int) -> jax.Array:
        # One axis more: learners are stacked.
        spec = PartitionSpec() if axis == NO_BATCH_AXIS else PartitionSpec(*(None,) * (axis + 1), "data")
        return put_on(leaf, NamedSharding(mesh, spec))

    learners = jax.tree.map(put, state.learners, batch_axes(state.learners))
    copied = jax.tree.map(lambda leaf: put(leaf, NO_BATCH_AXIS), replace(state, learners=None))
    return replace(copied, learners=learners)


def check_memory(config: EnvironmentRunConfig, learners: PyTree, levels: PyTree) -> None:
    """Check, before anything is allocated, that what training keeps fits.

    Args:
        config: the run's settings.
        learners: the learners' state, shapes alone.
        levels: environment parameters, shapes alone.

    Raises:
        InputError: it does not; names the largest part.
    """
    parts = {name: _num_bytes(leaf) for name, leaf in vars(learners).items()}
    parts["levels"] = _num_bytes(levels)
    available = available_bytes() * count_devices(config)
    needed = sum(parts.values())
    if needed > available:
        largest = max(parts, key=lambda name: parts[name])
        raise InputError(
            f"num_seeds={config.num_seeds}: the state of {config.num_seeds * config.num_points} learners takes "
            f"{as_gigabytes(needed)}, of which {largest} {as_gigabytes(parts[largest])}; there are "
            f"{as_gigabytes(available)}: choose {_remedy(config, largest)}"
        )


def _remedy(config: EnvironmentRunConfig, largest: str) -> str:
    """The settings that make the largest part smaller."""
    if largest == "replay":
        return f"a smaller buffer_size (now {getattr(config, 'buffer_size', '')}) or fewer seeds"
    return "fewer levels or seeds" if largest == "levels" else "fewer environments or seeds, or a smaller network"


def _num_bytes(tree: PyTree) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
