"""Regression of values on returns. Losses are per step; average them with `core.masked`."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from jaxrl_lm.core import masked


def squared_value_loss(values: Float[Array, "*S"], returns: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Half the squared error: `0.5 * (v - R)^2`.

    Args:
        values: predicted return.
        returns: target R, a constant.

    Returns:
        Losses, in the square of the unit of the return.
    """
    return 0.5 * jnp.square(values - returns)


def clipped_value_loss(
    values: Float[Array, "*S"],
    old_values: Float[Array, "*S"],
    returns: Float[Array, "*S"],
    clip_range: Float[ArrayLike, ""],
) -> Float[Array, "*S"]:
    """The larger of two squared errors: `0.5 * max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2)`.

    Args:
        values: predicted return.
        old_values: predictions at the time of acting.
        returns: target R, a constant.
        clip_range: c, in the unit of the return.

    Returns:
        Losses, in the square of the unit of the return.

    Reference: Engstrom et al., 2020, Implementation Matters in Deep Policy Gradients.
    """
    unclipped = squared_value_loss(values, returns)
    return jnp.maximum(unclipped, _loss_of_clipped_values(values, old_values, returns, clip_range))


def huber_value_loss(
    values: Float[Array, "*S"], returns: Float[Array, "*S"], delta: Float[ArrayLike, ""]
) -> Float[Array, "*S"]:
    """Huber's loss: `0.5 * e^2` where `|e| <= delta`, else `delta * (|e| - 0.5 * delta)`, with `e = v - R`.

    Args:
        values: predicted return.
        returns: target R, a constant.
        delta: error above which the loss is linear, in the unit of the return; infinite for the squared loss.

    Returns:
        Losses, in the square of the unit of the return.

    Reference: Huber, 1964, Robust Estimation of a Location Parameter.
    """
    errors = jnp.abs(values - returns)
    # Because inf * 0 is NaN, delta multiplies only errors that exceed it.
    inner = jnp.minimum(errors, delta)
    return inner * (errors - 0.5 * inner)


def value_clip_fraction(
    values: Float[Array, "*S"],
    old_values: Float[Array, "*S"],
    returns: Float[Array, "*S"],
    clip_range: Float[ArrayLike, ""],
    weights: Float[Array, "*S"],
) -> Float[Array, ""]:
    """Share of steps where `clipped_value_loss` uses the clipped error, so that the value has no gradient.

    Args:
        values: predicted return.
        old_values: predictions at the time of acting.
        returns: target R.
        clip_range: c, in the unit of the return.
        weights: of the steps in the share, which sum to 1 (`masked.mean_weights`).

    Returns:
        A share between 0 and 1.
    """
    unclipped = squared_value_loss(values, returns)
    is_clipped = _loss_of_clipped_values(values, old_values, returns, clip_range) > unclipped
    return masked.weighted_sum(is_clipped.astype(unclipped.dtype), weights)


def explained_variance(
    values: Float[Array, "*S"], returns: Float[Array, "*S"], mask: Shaped[Array, "*S"]
) -> Float[Array, ""]:
    """Explained variance, the share of the returns' variance predicted by the values: `1 - var(R - v) / var(R)`.

    Args:
        values: predicted return.
        returns: target R.
        mask: nonzero where a step counts.

    Returns:
        1 for a perfect prediction, 0 for a constant one, negative for a worse one; 0 if the returns are constant.
    """
    variance = masked.masked_var(returns, mask)
    is_varied = variance > 0
    residual_variance = masked.masked_var(returns - values, mask)
    return jnp.where(is_varied, 1.0 - residual_variance / jnp.where(is_varied, variance, 1.0), 0.0)


def _loss_of_clipped_values(
    values: Float[Array, "*S"],
    old_values: Float[Array, "*S"],
    returns: Float[Array, "*S"],
    clip_range: Float[ArrayLike, ""],
) -> Float[Array, "*S"]:
    return squared_value_loss(jnp.clip(values, old_values - clip_range, old_values + clip_range), returns)
