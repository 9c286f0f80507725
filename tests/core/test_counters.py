"""Counters at the limits of int32 and float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.core.counters import CompensatedSum, add_to_sum, next_count, value_of, zero_sum


def test_a_count_goes_on_at_2_to_the_30_after_the_largest_int32():
    counts = jnp.array([0, 2**30, 2**31 - 2, 2**31 - 1], jnp.int32)
    after = jax.jit(next_count)(counts)
    np.testing.assert_array_equal(after, [1, 2**30 + 1, 2**31 - 1, 2**30])
    assert after.dtype == jnp.int32


@jax.jit
def sum_of(terms):
    return jax.lax.scan(lambda s, x: (add_to_sum(s, x), None), zero_sum(), terms)[0]


@pytest.mark.parametrize("seed", range(2))
def test_a_long_sum_equals_that_of_float64(seed):
    terms = np.random.default_rng(seed).normal(size=200_000).astype(np.float32) + np.float32(0.1)
    exact = np.sum(terms.astype(np.float64))
    np.testing.assert_allclose(value_of(sum_of(terms)), exact, rtol=2e-7)


def test_ones_are_counted_beyond_2_to_the_24():
    start = CompensatedSum(total=jnp.float32(2.0**24), error=jnp.float32(0))
    total = start
    for _ in range(10):
        total = add_to_sum(total, jnp.float32(1.0))
    assert float(value_of(total)) == 2.0**24 + 10
    assert float(start.total + jnp.float32(1.0)) == 2.0**24  # what float32 alone makes of it


def test_what_a_large_term_rounds_away_comes_back():
    total = sum_of(jnp.array([1.0, 2.0**24, 1.0]))
    assert float(value_of(total)) == 2.0**24 + 2.0
