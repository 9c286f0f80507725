"""Masked reductions.

An entry is kept where its mask is nonzero. Masked entries may have any value, including inf and NaN: they are replaced
before the arithmetic, so they affect neither the result nor the gradient. Results are float32 or wider.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Shaped

Axis = int | tuple[int, ...] | None


def zero_masked(x: Float[Array, "*S"], mask: Shaped[Array, "*S"]) -> Float[Array, "*S"]:
    """Replace masked entries by 0: `x_i` where `m_i`, else 0.

    Args:
        x: entries.
        mask: nonzero where an entry counts.

    Returns:
        Entries; neither they nor their gradient depend on masked values.
    """
    return jnp.where(_keep(mask), _widen(x), 0.0)


def masked_sum(x: Float[Array, "*S"], mask: Shaped[Array, "*S"], axis: Axis = None) -> Float[Array, "..."]:
    """Sum of the kept entries: `sum_i m_i x_i`.

    Args:
        x: entries.
        mask: nonzero where an entry counts.
        axis: axis or axes to reduce; all of them when None.

    Returns:
        The sum; 0 where nothing is kept.
    """
    return jnp.sum(zero_masked(x, mask), axis=axis)


def masked_mean(x: Float[Array, "*S"], mask: Shaped[Array, "*S"], axis: Axis = None) -> Float[Array, "..."]:
    """Mean of the kept entries: `sum_i m_i x_i / sum_i m_i`.

    Args:
        x: entries.
        mask: nonzero where an entry counts.
        axis: axis or axes to reduce; all of them when None.

    Returns:
        The mean; 0 where nothing is kept.
    """
    return masked_sum(x, mask, axis) / _safe_count(mask, axis)


def mean_weights(mask: Shaped[Array, "*S"], axis: Axis = None) -> Float[Array, "*S"]:
    """Weights that make a mean of the kept entries: `m_i / sum_j m_j`.

    A batch that is worked on in parts keeps its mean so: the weighted sums of the parts add up to it.

    Args:
        mask: nonzero where an entry counts.
        axis: axis or axes of the mean; all of them when None.

    Returns:
        Weights that sum to 1; 0 where masked.
    """
    return _keep(mask).astype(jnp.float32) / _safe_count(mask, axis, keepdims=True)


def weighted_sum(x: Float[Array, "*S"], weights: Float[Array, "*S"]) -> Float[Array, ""]:
    """Sum of the entries times their weights: `sum_i w_i x_i`.

    Args:
        x: entries; as masked ones, those with weight 0 may have any value.
        weights: weights.

    Returns:
        The sum.
    """
    return jnp.sum(zero_masked(x, weights) * weights)


def masked_var(x: Float[Array, "*S"], mask: Shaped[Array, "*S"], axis: Axis = None) -> Float[Array, "..."]:
    """Biased variance of the kept entries: `sum_i m_i (x_i - mean)^2 / sum_i m_i`.

    Args:
        x: entries.
        mask: nonzero where an entry counts.
        axis: axis or axes to reduce; all of them when None.

    Returns:
        The variance, in the square of the unit of `x`; 0 where nothing is kept.
    """
    kept = zero_masked(x, mask)
    mean = jnp.sum(kept, axis=axis, keepdims=True) / _safe_count(mask, axis, keepdims=True)
    return masked_mean(jnp.square(kept - mean), mask, axis)


def masked_std(x: Float[Array, "*S"], mask: Shaped[Array, "*S"], axis: Axis = None) -> Float[Array, "..."]:
    """Biased standard deviation of the kept entries: `sqrt(masked_var)`.

    Args:
        x: entries.
        mask: nonzero where an entry counts.
        axis: axis or axes to reduce; all of them when None.

    Returns:
        The standard deviation; 0, with gradient 0, where the kept entries are equal or absent.
    """
    variance = masked_var(x, mask, axis)
    is_positive = variance > 0
    # The derivative of sqrt at 0 is infinite, and infinite times 0 is NaN.
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, variance, 1.0)), 0.0)


def masked_max(x: Float[Array, "*S"], mask: Shaped[Array, "*S"], axis: Axis = None) -> Float[Array, "..."]:
    """Largest kept entry: `max_{i: m_i} x_i`.

    Args:
        x: entries.
        mask: nonzero where an entry counts.
        axis: axis or axes to reduce; all of them when None.

    Returns:
        The maximum; 0 where nothing is kept.
    """
    keep = _keep(mask)
    largest = jnp.max(jnp.where(keep, _widen(x), -jnp.inf), axis=axis)
    return jnp.where(jnp.any(keep, axis=axis), largest, 0.0)


def whiten(
    x: Float[Array, "*S"], mask: Shaped[Array, "*S"], *, shift_mean: bool, epsilon: float = 1e-8
) -> Float[Array, "*S"]:
    """Scale the kept entries to unit variance: `(x - mean) / sqrt(var + epsilon)`, plus the mean if kept.

    Args:
        x: entries; mean and biased variance are taken over all axes.
        mask: nonzero where an entry counts.
        shift_mean: True removes the mean (advantages); False adds it back after scaling (rewards).
        epsilon: added to the variance, in the square of the unit of `x`.

    Returns:
        The whitened entries; 0 where masked.

    Reference: Ziegler et al., 2019, Fine-Tuning Language Models from Human Preferences (the published code).
    """
    kept = zero_masked(x, mask)
    mean = masked_mean(x, mask)
    whitened = (kept - mean) * lax.rsqrt(masked_var(x, mask) + epsilon)
    return zero_masked(whitened if shift_mean else whitened + mean, mask)


def next_kept(x: Float[Array, "*B T"], mask: Shaped[Array, "*B T"]) -> Float[Array, "*B T"]:
    """For each step, the entry of the next kept step: `x_s` with `s = min {s > t: m_s}`.

    Args:
        x: entries; time is the last axis.
        mask: nonzero where a step counts.

    Returns:
        Entries; 0 where no later step is kept.
    """
    num_steps = mask.shape[-1]
    steps = jnp.where(_keep(mask), jnp.arange(num_steps), num_steps)
    first_from_here = lax.cummin(steps, axis=steps.ndim - 1, reverse=True)
    following = jnp.concatenate([first_from_here[..., 1:], jnp.full_like(steps[..., :1], num_steps)], axis=-1)
    entries = jnp.take_along_axis(x, jnp.minimum(following, num_steps - 1), axis=-1)
    return zero_masked(entries, following < num_steps)


def has_next_kept(mask: Shaped[Array, "*B T"]) -> Bool[Array, "*B T"]:
    """Which kept steps are followed, at any distance, by another kept step.

    Args:
        mask: nonzero where a step counts; time is the last axis.

    Returns:
        False at the last kept step and at every masked one.
    """
    keep = _keep(mask)
    num_from_here = lax.cumsum(keep.astype(jnp.int32), axis=keep.ndim - 1, reverse=True)
    return keep & (num_from_here > 1)


def is_last_kept(mask: Shaped[Array, "*B T"]) -> Bool[Array, "*B T"]:
    """The last kept step of each row; none if no step is kept.

    Args:
        mask: nonzero where a step counts; time is the last axis.
    """
    return _keep(mask) & ~has_next_kept(mask)


def _keep(mask: Shaped[Array, "*S"]) -> Bool[Array, "*S"]:
    return mask.astype(bool)


def _widen(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _safe_count(mask: Shaped[Array, "*S"], axis: Axis, *, keepdims: bool = False) -> Shaped[Array, "..."]:
    return jnp.maximum(jnp.sum(_keep(mask), axis=axis, keepdims=keepdims), 1)
