"""Random orders, several times as fast as sorting keys beside their indices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

_KEY_BITS = 32


def random_order(key: Key[Array, ""], size: int) -> Int[Array, " N"]:
    """A random permutation of 0 to N-1.

    Random bits above, the index below, in one 32-bit integer: sorting it is several times as fast on a CPU as sorting
    keys and indices side by side. Equal bits fall in the order of the pass before, so that as many passes as make 32
    bits together are as good as one sort by 32-bit keys.

    Args:
        key: consumed.
        size: N, at most 2^24.

    Raises:
        ValueError: N is larger.
    """
    if size > 2**24:
        raise ValueError(f"size={size} is more than 2^24, which leaves too few random bits beside an index")
    index_bits = max(1, (size - 1).bit_length())
    indices = jnp.arange(size, dtype=jnp.uint32)
    order = indices
    for pass_key in jax.random.split(key, -(-_KEY_BITS // (_KEY_BITS - index_bits))):
        packed = jnp.sort((jax.random.bits(pass_key, (size,), jnp.uint32) << index_bits) | indices)
        order = order[packed & jnp.uint32(2**index_bits - 1)]
    return order.astype(jnp.int32)
