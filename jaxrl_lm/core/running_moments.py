"""Mean and variance of a stream of batches.

Reference: Chan, Golub and LeVeque, 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class RunningMoments(NamedTuple):
    """What a stream has shown so far.

    Attributes:
        mean: `[...]`, float32.
        variance: biased, `[...]`, float32.
        count: values seen, float32 scalar; starts just above 0, so that the first batch decides alone.
    """

    mean: jax.Array
    variance: jax.Array
    count: jax.Array


def init_moments(shape: tuple[int, ...]) -> RunningMoments:
    """Mean 0 and variance 1 before anything was seen."""
    return RunningMoments(mean=jnp.zeros(shape), variance=jnp.ones(shape), count=jnp.asarray(1e-4))


def update_moments(moments: RunningMoments, batch: Float[Array, "N ..."]) -> RunningMoments:
    """The moments after N more values of shape `[*D]`."""
    size = batch.shape[0]
    mean, variance = jnp.mean(batch, axis=0), jnp.var(batch, axis=0)
    count = moments.count + size
    shift = mean - moments.mean
    squares = moments.variance * moments.count + variance * size + jnp.square(shift) * moments.count * size / count
    return RunningMoments(mean=moments.mean + shift * size / count, variance=squares / count, count=count)


def standardize(x: Float[Array, "*B"], moments: RunningMoments, *, limit: float = 10.0) -> Float[Array, "*B"]:
    """(x - mean) / std, clipped to [-limit, limit]."""
    return jnp.clip((x - moments.mean) * jax.lax.rsqrt(moments.variance + 1e-8), -limit, limit)
