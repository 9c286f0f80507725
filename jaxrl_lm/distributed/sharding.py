"""One table from logical axes to axes of the mesh, and the placement of arrays that follows from it.

Modules name the axes of their parameters ("embed", "heads", ...) and constrain activations by the same names. What is
split over which devices is decided here alone. Without a mesh everything is on one device and nothing is constrained.

Reference: Xu et al., 2021, GSPMD: General and Scalable Parallelization for ML Computation Graphs; Rajbhandari et al.,
2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (the fsdp axis is its third stage).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

AXES = ("data", "fsdp", "tensor")
"""Axes of every mesh."""

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "cache_batch": ("data", "fsdp"),
    "cache_heads": ("tensor",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": (),  # their mlp axis is split instead, see `models.qwen3_moe.ExpertWeights`
    "embed": ("fsdp",),
    "qkv": (),  # queries, keys and values in one product, as in GPT-2: no multiple of heads
    "positions": (),
    "pooled": (),
    "layers": (),
    "rank": (),
}
"""Axes of the mesh that a logical axis is split over."""

DECODING_RULES = RULES | {
    "batch": ("data",),
    "vocab": ("fsdp", "tensor"),
    "heads": ("fsdp", "tensor"),
    "kv_heads": ("fsdp", "tensor"),
    "mlp": ("fsdp", "tensor"),
    "embed": (),
}
"""The table while tokens are decoded: a step reads every parameter once for a few rows, so devices exchange activations
instead of gathering parameters. Attention and sampling are split by rows, as in training (`cache_batch`)."""

_current_rules = ContextVar("rules", default=RULES)


@contextmanager
def use_rules(rules: dict[str, tuple[str, ...]]) -> Iterator[None]:
    """What is traced inside is split by this table."""
    token = _current_rules.set(rules)
    try:
        yield
    finally:
        _current_rules.reset(token)


def spec_of(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The partition of an array with these logical axes; None is not split."""
    rules = _current_rules.get()
    return PartitionSpec(*(rules[axis] or None if axis is not None else None for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Split an activation over the mesh in use by its logical axes; axes that the mesh does not divide are not split.

    Args:
        x: an array, one logical axis per dimension.
        axes: their names in `RULES`, or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(x.shape, spec_of(axes), mesh))


def gather(weight: jax.Array, *axes: str | None) -> jax.Array:
    """A parameter as a product reads it: with the parts that the fsdp axis splits it into put together.

    While tokens are decoded, parameters stay split.
    Cast it to the dtype of the product first: that is what travels between devices.

    Args:
        weight: a parameter, one logical axis per dimension.
        axes: their names.
    """
    rules = _current_rules.get()
    if rules is DECODING_RULES:
        return constrain(weight, *axes)
    return constrain(weight, *(None if axis is None or "fsdp" in rules[axis] else axis for axis in axes))


def batch_parts() -> int:
    """How many parts a batch is split into, for traced code; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_batch_parts(mesh)


def by_batch_part(function: Callable[..., jax.Array], num_split: int, *args: jax.Array) -> jax.Array:
    """`function(*args)`, computed for each part of the batch where that part is.

    Otherwise, what mixes rows, such as sorting them, would be computed for the whole batch on every device.

    Args:
        function: gives `[B, ...]`, in which each row depends on the same row of the arguments that are split.
        num_split: how many of the first arguments are `[B, ...]`; the others are whole along the batch's axes.
        args: the arguments.
    """
    mesh, axes = jax.sharding.get_abstract_mesh(), _current_rules.get()["batch"]
    if mesh.empty or mesh.size == 1 or len(args[0]) % _num_parts(axes, mesh):
        return function(*args)
    rows = PartitionSpec(axes)
    specs = (rows,) * num_split + (PartitionSpec(),) * (len(args) - num_split)
    split = jax.shard_map(function, in_specs=specs, out_specs=rows, axis_names=set(axes))
    return split(*args)


def by_part(
    function: Callable[..., jax.Array],
    axes: Sequence[tuple[str | None, ...]],
    out_axes: tuple[str | None, ...],
    *args: jax.Array,
) -> jax.Array:
    """`function(*args)`, computed for each part of the arguments where that part is.

    For kernels, which the compiler cannot split. An axis that the mesh does not divide in every argument is not split.

    Args:
        function: gives an array whose parts depend on the same parts of the arguments.
        axes: logical axes of each argument.
        out_axes: those of the result.
        args: the arguments.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), _current_rules.get()
    if mesh.empty or mesh.size == 1:
        return function(*args)
    named = [
        (name, size) for names, arg in zip(axes, args, strict=True) for name, size in zip(names, arg.shape, strict=True)
    ]
    whole = {name for name, size in named if name is not None and size % _num_parts(rules[name], mesh)}
    *in_specs, out_specs = (
        spec_of(tuple(None if name in whole else name for name in names)) for names in (*axes, out_axes)
    )
    split = jax.shard_map(function, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)
    return split(*args)


def fitting(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The partition without the dimensions that the mesh does not divide."""
    return PartitionSpec(
        *(part if size % _num_parts(part, mesh) == 0 else None for size, part in zip(shape, spec, strict=True))
    )


def _num_parts(part: Any, mesh: Mesh | AbstractMesh) -> int:
    names = () if part is None else (part,) if isinstance(part, str) else part
    return math.prod(mesh.shape[name] for name in names)


def shardings_of(axes: PyTree, mesh: Mesh) -> PyTree:
    """Shardings of parameters from their logical axes, tuples that are the leaves of a tree."""
    return jax.tree.map(
        lambda names: NamedSharding(mesh, spec_of(names)), axes, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )


def state_shardings(state: PyTree, params: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    """Shardings of a learner's state: each copy of the parameters, such as Adam's moments, is split as they are.

    Args:
        state: a learner's state, arrays or shapes.
        params: the parameters' shapes, as `init` of the learner receives them.
        shardings: the parameters' shardings.
        mesh: what everything else is copied over.
    """
    wanted = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(_with_paths(params), jax.tree.leaves(shardings), strict=True)
    }
    longest = max(map(len, wanted), default=0)

    def find(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = _names(path)
        for length in range(min(longest, len(names)), 0, -1):
            shape, sharding = wanted.get(names[-length:], (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(find, state)


def _with_paths(tree: PyTree) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield _names(path), leaf


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def any_of(choices: list[str]) -> str:
    """Choices as words: "1", "1 or 2", "1, 2 or 4"."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def check_divides(sizes: Mapping[str, tuple[int, str]], mesh: Mesh | AbstractMesh) -> None:
    """Refuse a mesh that does not divide what its axes split.

    Args:
        sizes: for what is split, by its name for users: its size, and the logical axis.
        mesh: the mesh.

    Raises:
        InputError: names the axis, and the largest smaller size that would do.
    """
    for name, (size, logical) in sizes.items():
        axes = [axis for axis in RULES[logical] if mesh.shape[axis] > 1]
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            smaller = [str(each) for each in range(1, parts) if size % each == 0]
            shown = " * ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in axes)
            raise InputError(f"{shown} does not divide {name}={size}; choose {any_of(smaller)} for it")


def batch_sharding(mesh: Mesh, num_leading: int = 0) -> NamedSharding:
    """The sharding of a batch `[B, ...]`, or of `[A, B, ...]` with leading axes that are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * num_leading, *spec_of(("batch",))))


def num_batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """How many parts a batch is split into."""
    return _num_parts(RULES["batch"], mesh)


def current_mesh() -> Mesh | None:
    """The mesh in use (`use_mesh`); None where one device does all. Not for traced code."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def place_params(params: PyTree, axes: PyTree) -> PyTree:
    """Split parameters over the mesh in use.

    Args:
        params: arrays on the host or on one device.
        axes: their logical axes, `models.logical_axes`.
    """
    mesh = current_mesh()
    return params if mesh is None else jax.tree.map(put_on, params, shardings_of(axes, mesh))


def place_batch(batch: PyTree, *, num_leading: int = 0) -> PyTree:
    """Split a batch, which every process has as a whole, over the mesh in use.

    Each process copies only the rows of its devices. A batch that the mesh does not divide is on every device, and one
    that is being traced is left to the program.

    Args:
        batch: leaves `[..., B, ...]`, NumPy or JAX arrays on the host.
        num_leading: axes before B.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(batch)) or (mesh := current_mesh()) is None:
        return batch

    def put(leaf: Any) -> jax.Array:
        is_split = leaf.ndim > num_leading and leaf.shape[num_leading] % num_batch_parts(mesh) == 0
        sharding = batch_sharding(mesh, num_leading) if is_split else NamedSharding(mesh, PartitionSpec())
        return put_on(leaf, sharding)

    return jax.tree.map(put, batch)


def like(leaf: Any, other: jax.Array) -> jax.Array:
    """An array of the host where another one is; on the default device if that one is on no mesh."""
    sharding = other.sharding
    return put_on(leaf, sharding) if isinstance(sharding, NamedSharding) else jnp.asarray(leaf)


def put_on(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has as a whole on devices; each process copies only what its devices hold.

    Args:
        leaf: a NumPy array, or a JAX array, also of random keys.
        sharding: over any devices, also of other processes.
    """
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = put_on(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def build_on(sharding: NamedSharding, shape: tuple[int, ...], read: Callable[[Any], np.ndarray]) -> jax.Array:
    """An array on devices, of which each process only makes the parts of its own, one after the other.

    Args:
        sharding: over any devices, also of other processes.
        shape: of the whole array.
        read: gives the part at an index of slices; called once for a part that several devices hold.
    """
    holders = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        holders[tuple((part.start, part.stop) for part in index)].append(device)
    parts = []
    for ends, devices in holders.items():
        part = read(tuple(slice(*each) for each in ends))
        # Wait, or parts would be read faster than devices take them.
        parts += jax.block_until_ready([jax.device_put(part, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)
