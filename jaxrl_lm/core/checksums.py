"""Checksums to detect changed inputs of a run."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksum_arrays(tree: Any) -> int:
    """A checksum of the bits of a tree's leaves, in order; names and types are ignored.

    Computed on the devices, and the same however the arrays are split over them.

    Args:
        tree: arrays of at most four bytes per entry.
    """
    sums = [np.asarray(_checksum(jnp.asarray(leaf))) for leaf in jax.tree.leaves(tree)]
    return zlib.crc32(np.array(sums, np.uint32).tobytes())


@jax.jit
def _checksum(array: jax.Array) -> jax.Array:
    """Sum of a mix of every entry's bits and position, modulo 2^32: the order of adding does not matter."""
    bits = jax.lax.bitcast_convert_type(array, _UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)
    position, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    mixed = (bits + position * jnp.uint32(0x9E3779B1)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def checksum_value(value: Any) -> int:
    """CRC32 of a plain value's text."""
    return zlib.crc32(repr(value).encode())
