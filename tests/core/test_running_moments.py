"""Running moments against numpy over the whole stream."""

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
