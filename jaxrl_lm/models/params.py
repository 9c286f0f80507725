"""A model's parameters: initial ones, shapes, and logical axes."""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from jaxrl_lm.distributed.sharding import build_on, shardings_of
from jaxrl_lm.models.stored import Stored, read
from jaxrl_lm.types import PyTree


def init_params(model: nn.Module, key: jax.Array) -> PyTree:
    """Initial parameters of a language model or an encoder."""
    return _init(model, key)


@partial(jax.jit, static_argnums=0)
def _init(model: nn.Module, key: jax.Array) -> PyTree:
    return nn.meta.unbox(_boxed(model, key))


def param_shapes(model: nn.Module) -> PyTree:
    """Shapes and dtypes of the parameters, `jax.ShapeDtypeStruct` as leaves."""
    return nn.meta.unbox(_boxed_shapes(model))


def num_params(model: nn.Module) -> int:
    """Number of the parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model)))


def logical_axes(model: nn.Module) -> PyTree:
    """Logical axes of the parameters: for each leaf a tuple of names in `distributed.RULES`, or None, by dimension."""
    flat = flatten_dict(_boxed_shapes(model))
    return unflatten_dict({path: _axes_of(leaf) for path, leaf in flat.items()})


def load_params(model: nn.Module, stored: PyTree, mesh: Mesh | None = None) -> PyTree:
    """Parameters on devices, in the model's dtypes, read one at a time.

    Of an array over a mesh, each process reads the parts of its own devices, so that its memory never holds more than
    one part. (What a disk reads is pages of the file: of a matrix that is split by columns, most processes touch all.)

    Args:
        model: the module.
        stored: its parameters as `Stored` tensors.
        mesh: what to split them over; None puts them on the default device.
    """
    shapes = param_shapes(model)
    if mesh is None:
        return jax.tree.map(
            # Wait, or parameters would be read faster than the device takes them.
            lambda tensor, shape: jnp.asarray(read(tensor, dtype=shape.dtype)).block_until_ready(),
            stored,
            shapes,
        )

    def build(tensor: Stored, shape: Any, sharding: NamedSharding) -> jax.Array:
        return build_on(sharding, shape.shape, lambda index: read(tensor, index, shape.dtype))

    return jax.tree.map(build, stored, shapes, shardings_of(logical_axes(model), mesh))


def _axes_of(leaf: Any) -> tuple[str | None, ...]:
    if isinstance(leaf, nn.LogicallyPartitioned):
        return leaf.names
    return (None,) * len(leaf.shape)


@lru_cache(maxsize=16)  # tracing an unrolled stack takes seconds, and loading asks several times
def _boxed_shapes(model: nn.Module) -> PyTree:
    # The key is made inside: there may be no device to make it on.
    return jax.eval_shape(lambda: _boxed(model, jax.random.key(0)))


def _boxed(model: nn.Module, key: jax.Array) -> PyTree:
    """Parameters in boxes that hold their logical axes."""
    return model.init(key, jnp.ones((1, 1), jnp.int32))["params"]
