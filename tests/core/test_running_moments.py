"""Running moments against numpy over the whole stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.core import running_moments as rm


@pytest.mark.parametrize("sizes", [(7,), (1, 1, 1, 30), (64, 3, 5)])
def test_moments_of_batches_are_those_of_the_stream(sizes: tuple[int, ...]):
    batches = [np.random.default_rng(i).normal(3.0, 2.0 + i, (n, 2)).astype(np.float32) for i, n in enumerate(sizes)]
    moments = rm.init_moments((2,))
    for batch in batches:
        moments = rm.update_moments(moments, jnp.asarray(batch))
    stream = np.concatenate(batches)
    # The start counts as 1e-4 values of mean 0 and variance 1.
    np.testing.assert_allclose(moments.mean, stream.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, stream.var(0), rtol=2e-4)
    np.testing.assert_allclose(moments.count, len(stream), rtol=1e-4)


def test_standardized_values_have_mean_0_variance_1_and_a_limit():
    stream = np.random.default_rng(0).normal(-5.0, 3.0, (1000, 3)).astype(np.float32)
    moments = rm.update_moments(rm.init_moments((3,)), jnp.asarray(stream))
    standard = rm.standardize(jnp.asarray(stream), moments)
    np.testing.assert_allclose(np.mean(standard, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.std(standard, axis=0), 1, rtol=1e-3)
    assert float(rm.standardize(jnp.full((3,), 1e6), moments).max()) == 10.0


update_jit = jax.jit(rm.update_moments)


@pytest.mark.parametrize("size", [1, 8])
def test_beyond_the_window_old_values_lose_weight_at_a_fixed_rate(size: int):
    """A stream that becomes constant: the variance falls by 1 - 1 / window a batch, whatever its size."""
    count = jnp.float32(2.0**24 * size)
    start = rm.RunningMoments(mean=jnp.zeros(()), variance=jnp.ones(()), count=count)
    step = lambda moments, _: (rm.update_moments(moments, jnp.zeros(size)), None)  # noqa: E731
    moments = jax.jit(lambda m: jax.lax.scan(step, m, None, length=rm.MAX_BATCHES)[0])(start)
    np.testing.assert_allclose(moments.variance, np.exp(-1.0), rtol=1e-3)
    assert float(moments.count) == rm.MAX_BATCHES * size


def test_moments_follow_a_shift_beyond_the_window():
    start = rm.RunningMoments(mean=jnp.zeros(()), variance=jnp.ones(()), count=jnp.float32(2.0**30))
    moments = update_jit(start, jnp.full(64, 2.0))
    weight = 1 / rm.MAX_BATCHES
    np.testing.assert_allclose(moments.mean, 2.0 * weight, rtol=1e-6)
    np.testing.assert_allclose(moments.variance - 1.0, -weight + 4.0 * weight * (1 - weight), rtol=0.02)
