"""Frozen dataclasses of arrays that pass through `jit`, `vmap` and `scan`.

As `flax.struct.dataclass` with every field a leaf, on JAX's own registration: importing flax takes half as long as
importing JAX, which a user of one algorithm need not wait for.
"""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

import jax

_Record = TypeVar("_Record")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def record(cls: type[_Record]) -> type[_Record]:
    """Make a class a frozen dataclass with keyword-only fields, each of which is a child of a pytree node."""
    return jax.tree_util.register_dataclass(dataclass(frozen=True, kw_only=True)(cls))
