"""Counters and sums that stay right over the longest runs, in int32 and float32."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

MAX_COUNT = 2**31 - 1
WRAPPED_COUNT = 2**30


class CompensatedSum(NamedTuple):
    """A float32 sum and what rounding has taken from it; `value_of` gives the sum of both.

    Attributes:
        total: the sum as float32 arithmetic gives it, `[...]`.
        error: what is missing from it, `[...]`.
    """

    total: Array
    error: Array


def next_count(count: Int[Array, "*S"]) -> Int[Array, "*S"]:
    """`count + 1`, and 2^30 after the largest int32.

    So a count of updates never becomes negative: schedules that have ended stay ended, and no two updates within 2^30
    of each other have the same count, from which they draw their random numbers.
    """
    return jnp.where(count == MAX_COUNT, WRAPPED_COUNT, count + 1).astype(jnp.int32)


def zero_sum(shape: tuple[int, ...] = ()) -> CompensatedSum:
    """An empty sum for each entry."""
    # Zeros of their own for both parts: one buffer could not be donated twice.
    return CompensatedSum(total=jnp.zeros(shape, jnp.float32), error=jnp.zeros(shape, jnp.float32))


def add_to_sum(accumulated: CompensatedSum, x: Float[Array, "*S"]) -> CompensatedSum:
    """The sum with one more term; its error stays at float32's rounding of the sum of `|x|`, however many there are.

    With `y = x + error` and `t = total + y` rounded, what rounding took, `(total - (t - z)) + (y - z)` with
    `z = t - total`, is exact, and goes into the next term.

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
