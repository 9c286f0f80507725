"""Counters and sums that stay correct over very long runs, in int32 and float32."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

MAX_COUNT = 2**31 - 1
WRAPPED_COUNT = 2**30


class CompensatedSum(NamedTuple):
    """A compensated float32 sum; `value_of` adds both parts.

    Attributes:
        total: the sum in float32 arithmetic, `[...]`.
        error: accumulated rounding error, `[...]`.
    """

    total: Array
    error: Array


def next_count(count: Int[Array, "*S"]) -> Int[Array, "*S"]:
    """`count + 1`, and 2^30 after the largest int32.

    A count of updates therefore never becomes negative: finished schedules stay finished, and no two updates within
    2^30 of each other share a count, which seeds their random numbers.
    """
    return jnp.where(count == MAX_COUNT, WRAPPED_COUNT, count + 1).astype(jnp.int32)


def zero_sum(shape: tuple[int, ...] = ()) -> CompensatedSum:
    """An empty sum for each entry."""
    # Separate zeros for both parts: one buffer could not be donated twice.
    return CompensatedSum(total=jnp.zeros(shape, jnp.float32), error=jnp.zeros(shape, jnp.float32))


def add_to_sum(accumulated: CompensatedSum, x: Float[Array, "*S"]) -> CompensatedSum:
    """Add a term; the error stays at the float32 rounding of the sum of `|x|`, for any number of terms.

    With `y = x + error` and `t = total + y` rounded, the rounding error `(total - (t - z)) + (y - z)`, where
    `z = t - total`, is exact and is added to the next term.

    Args:
        accumulated: the sum so far.
        x: the term of each entry.

    Reference: Kahan, 1965, Further Remarks on Reducing Truncation Errors; Knuth, 1997, The Art of Computer Programming,
    volume 2, section 4.2.2, theorem B (the exact error of an addition).
    """
    term = x + accumulated.error
    total = accumulated.total + term
    rounded = total - accumulated.total
    return CompensatedSum(total=total, error=(accumulated.total - (total - rounded)) + (term - rounded))


def value_of(accumulated: CompensatedSum) -> Float[Array, "*S"]:
    """The sum, rounded once."""
    return accumulated.total + accumulated.error
