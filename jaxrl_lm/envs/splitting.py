"""Which levels are held out from training: those whose layout has a small hash, the same in every process."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32

HELD_OUT_SHARE = 1 / 8


def hash_layouts(cells: UInt8[Array, "L C"]) -> UInt32[Array, " L"]:
    """A number for the cells of each level; equal cells have equal numbers."""
    places = jnp.arange(cells.shape[1], dtype=jnp.uint32)
    return mix(jnp.sum(cells.astype(jnp.uint32) * mix(places + 1), axis=1, dtype=jnp.uint32))


def mix(x: UInt32[Array, "*B"]) -> UInt32[Array, "*B"]:
    """Scatter the bits of 32-bit integers (the last steps of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def cumulative_shares(hashes: UInt32[np.ndarray, " M"]) -> tuple[UInt32[np.ndarray, " H"], Float[np.ndarray, " H"]]:
    """The different hashes of generated levels, ascending, and how likely a level's hash is at most each of them."""
    found, counts = np.unique(hashes, return_counts=True)
    return found, np.cumsum(counts) / len(hashes)


def held_out_threshold(hashes: UInt32[np.ndarray, " H"], shares: Float[np.ndarray, " H"]) -> int:
    """Layouts with a hash below this number are held out.

    They are held out in the order of their hashes until they make up an eighth of the generated levels. At least one
    layout is held out and at least one stays for training.

    Args:
        hashes: of `cumulative_shares`, at least two.
        shares: of `cumulative_shares`.
    """
    last = min(int(np.searchsorted(shares, HELD_OUT_SHARE)), len(hashes) - 2)
    return int(hashes[last]) + 1
