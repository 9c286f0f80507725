"""Loading of checkpoints to a mesh of eight virtual devices, compared with loading to one; prints what was read.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.distributed.mesh_loading VARIANT...
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_lm import distributed
from jaxrl_lm.distributed import MeshConfig
from jaxrl_lm.distributed.sharding import shardings_of
from jaxrl_lm.models import from_pretrained, logical_axes, save_pretrained, stack_layers, stored
from jaxrl_lm.models import params as params_module
from jaxrl_lm.training.language_model import load_model
from tests.models import tiny

SIZES = {"vocab_size": 104}  # which the mesh divides
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


class CountedReads:
    """`stored.read` that keeps the sizes in bytes of what it returned."""

    def __init__(self, read: Any) -> None:
        self.sizes: list[int] = []
        self._read = read

    def __call__(self, *args: Any, **options: Any) -> np.ndarray:
        part = self._read(*args, **options)
        self.sizes.append(part.nbytes)
        return part


def load_both(folder: Path, *, is_scanned: bool) -> dict[str, Any]:
    """How parameters on a mesh differ from those on one device, and which bytes were read for them."""
    model, expected = from_pretrained(folder)
    if is_scanned:
        expected = stack_layers(expected, model.family.layers)
    counted = CountedReads(stored.read)
    params_module.read = counted
    with distributed.use_mesh(distributed.make_mesh(MESH)):
        loaded = load_model(folder, scan_layers=is_scanned, tokenizer="of another model")
        mesh = distributed.current_mesh()
    params_module.read = stored.read
    assert mesh is not None
    leaves, shardings = jax.tree.leaves(loaded.params), jax.tree.leaves(shardings_of(logical_axes(loaded.model), mesh))
    same = jax.tree.map(lambda ours, theirs: np.array_equal(ours, theirs), loaded.params, expected)
    return {
        "is_equal": all(jax.tree.leaves(same)),
        "is_split": all(leaf.sharding == sharding for leaf, sharding in zip(leaves, shardings, strict=True)),
        "read": sum(counted.sizes),
        "largest_read": max(counted.sizes),
        "size": sum(leaf.nbytes for leaf in leaves),
        "largest_shard": max(leaf.addressable_shards[0].data.nbytes for leaf in leaves),
        "largest": max(leaf.nbytes for leaf in leaves),
    }


def report(name: str) -> dict[str, Any]:
    """What `load_both` says of an unrolled and a scanned model."""
    model_type, options = tiny.VARIANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, *tiny.random_model(model_type, **(options | SIZES)), max_shard_bytes=20_000)
        assert len(list(Path(folder).glob("*.safetensors"))) > 1
        return {str(is_scanned): load_both(Path(folder), is_scanned=is_scanned) for is_scanned in (False, True)}


if __name__ == "__main__":
    print(json.dumps({name: report(name) for name in sys.argv[1:]}))
