"""Per-sample estimators of KL(pi || ref) from actions drawn from pi, and the controller of its penalty.

Reference: Schulman, 2020, Approximating KL Divergence.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real


def k1(log_probs: Float[Array, "*S"], reference_log_probs: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """k1, the log-ratio: `log pi - log ref`; unbiased, of either sign.

    Args:
        log_probs: log pi of the sampled action, nats.
        reference_log_probs: log ref of the same action, nats.

    Returns:
        Estimates, nats.
    """
    return log_probs - reference_log_probs


def k2(log_probs: Float[Array, "*S"], reference_log_probs: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """k2, half the squared log-ratio: `0.5 * (log pi - log ref)^2`; biased, low variance, non-negative.

    Args:
        log_probs: log pi of the sampled action, nats.
        reference_log_probs: log ref of the same action, nats.

    Returns:
        Estimates, nats.
    """
    return 0.5 * jnp.square(log_probs - reference_log_probs)


def k3(log_probs: Float[Array, "*S"], reference_log_probs: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """k3: `ref / pi - 1 - log(ref / pi)`; unbiased, non-negative.

    Args:
        log_probs: log pi of the sampled action, nats.
        reference_log_probs: log ref of the same action, nats.

    Returns:
        Estimates, nats.
    """
    log_ratio = reference_log_probs - log_probs
    # exp(x) - 1 - x loses all digits near x = 0 in float32 and can be negative.
    return jnp.expm1(log_ratio) - log_ratio


def adaptive_kl_coefficient(
    coefficient: Float[ArrayLike, ""],
    observed_kl: Float[ArrayLike, ""],
    *,
    target: Real[ArrayLike, ""],
    horizon: Real[ArrayLike, ""],
    num_episodes: Real[ArrayLike, ""],
) -> Float[Array, ""]:
    """The next KL coefficient: `beta * (1 + clip(KL / target - 1, -0.2, 0.2) * num_episodes / horizon)`.

    Args:
        coefficient: beta, reward per nat.
        observed_kl: mean KL per completion in the last batch, nats.
        target: target KL, nats.
        horizon: number of episodes over which a clipped error changes beta by a fifth.
        num_episodes: number of episodes in the last batch.

    Returns:
        The coefficient for the next batch.

    Reference: Ziegler et al., 2019, Fine-Tuning Language Models from Human Preferences, section 2.2.
    """
    error = jnp.clip(observed_kl / target - 1.0, -0.2, 0.2)
    return jnp.asarray(coefficient * (1.0 + error * num_episodes / horizon))
