"""Running mean and variance of a stream of batches.

Reference: Chan, Golub and LeVeque, 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

MAX_BATCHES = 2**18
"""Effective window: after this many batches, older ones decay by `1 - 1 / 2^18` per batch."""


class RunningMoments(NamedTuple):
    """Moments of the values seen so far.

    Attributes:
        mean: `[...]`, float32.
        variance: biased, `[...]`, float32.
        count: number of values represented, float32 scalar; starts just above 0, so that the first batch alone
            determines the moments, and is limited to `MAX_BATCHES` times the batch size.
    """

    mean: jax.Array
    variance: jax.Array
    count: jax.Array


def init_moments(shape: tuple[int, ...]) -> RunningMoments:
    """Initial moments: mean 0 and variance 1."""
    return RunningMoments(
        mean=jnp.zeros(shape, jnp.float32), variance=jnp.ones(shape, jnp.float32), count=jnp.float32(1e-4)
    )


def update_moments(moments: RunningMoments, batch: Float[Array, "N ..."]) -> RunningMoments:
    """Update the moments with N values of shape `[*D]`.

    With `w = N / (count + N)`, batch mean `m` and batch variance `v`:

        mean     <- mean + w (m - mean)
        variance <- (1 - w) variance + w v + w (1 - w) (m - mean)^2

    These are the moments of all values until `count` reaches `MAX_BATCHES * N`. From then on `count` and w are
    constant, and the moments are exponentially weighted with an effective window of 2^18 batches. (An unbounded float32
    count would stop growing at 2^24 batches, after which old values would never lose weight.)

    Args:
        moments: moments of earlier values.
        batch: new values.
    """
    size = batch.shape[0]
    mean, variance = jnp.mean(batch, axis=0), jnp.var(batch, axis=0)
    count = jnp.minimum(moments.count, (MAX_BATCHES - 1) * float(size)) + size
    weight = size / count
    shift = mean - moments.mean
    return RunningMoments(
        mean=moments.mean + weight * shift,
        variance=moments.variance + weight * (variance - moments.variance + (1.0 - weight) * jnp.square(shift)),
        count=count,
    )


def standardize(x: Num[Array, "*B"], moments: RunningMoments, *, limit: float = 10.0) -> Float[Array, "*B"]:
    """`(x - mean) / std`, clipped to `[-limit, limit]`, float32."""
    centred = x.astype(jnp.float32) - moments.mean
    return jnp.clip(centred * jax.lax.rsqrt(moments.variance + 1e-8), -limit, limit)
