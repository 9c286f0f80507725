"""Policy-gradient losses and group advantages.

Losses are per step; average them with `core.masked`. Steps masked afterwards must have finite inputs, because a mask
cannot remove an earlier NaN from the gradient.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxrl_lm.core import kl, masked

_STANDARD_DEVIATION_FLOOR = 1e-4


def clipped_surrogate(
    log_probs: Float[Array, "*B T"],
    old_log_probs: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    clip_range: Float[ArrayLike, ""],
) -> Float[Array, "*B T"]:
    """PPO's clipped surrogate: `max(-A * ratio, -A * clip(ratio, 1 - c, 1 + c))`, `ratio = pi / pi_old`.

    Args:
        log_probs: log pi(a_t | o_t) of the policy that learns, nats.
        old_log_probs: the same of the policy that acted, nats.
        advantages: A_t.
        clip_range: c, the largest rewarded deviation of the ratio from 1.

    Returns:
        Losses, to minimise.

    Reference: Schulman et al., 2017, Proximal Policy Optimization Algorithms.
    """
    ratio = jnp.exp(log_probs - old_log_probs)
    clipped_ratio = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return jnp.maximum(-advantages * ratio, -advantages * clipped_ratio)


def truncated_importance(
    log_probs: Float[Array, "*B T"], acting_log_probs: Float[Array, "*B T"], limit: float
) -> Float[Array, "*B T"]:
    """Importance weights of actions that another policy chose: `min(pi / pi_acting, limit)`.

    Multiplied with advantages they correct the policy loss for rollouts by older or rounded parameters. Truncation
    bounds the variance and biases towards the acting policy.

    Args:
        log_probs: log pi(a_t | o_t) of the policy before learning, nats.
        acting_log_probs: the same of the policy that acted, nats.
        limit: largest weight.

    Returns:
        Weights.

    Reference: Ionides, 2008, Truncated Importance Sampling; Espeholt et al., 2018, IMPALA.
    """
    return jnp.minimum(jnp.exp(log_probs - acting_log_probs), limit)


def group_advantages(
    rewards: Float[Array, "groups group_size"], *, kind: Literal["leave_one_out", "standardized"]
) -> Float[Array, "groups group_size"]:
    """Advantages of several completions of one prompt relative to each other.

    `leave_one_out`: `r_i - mean_{j != i} r_j`. `standardized`: `(r_i - mean) / (std + 1e-4)`, std unbiased.

    Args:
        rewards: score of each completion, one row per prompt.
        kind: the baseline of RLOO or GRPO.

    Returns:
        Advantages, which sum to 0 over each group.

    Raises:
        ValueError: if a group has fewer than two completions, or `kind` is unknown.

    Reference: Ahmadian et al., 2024, Back to Basics: Revisiting REINFORCE Style Optimization for Learning
    from Human Feedback in LLMs (RLOO); Shao et al., 2024, DeepSeekMath (GRPO; the constant and the unbiased
    std are TRL's).
    """
    group_size = rewards.shape[-1]
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}; completions are compared within a group, so sample at least 2")
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    if kind == "leave_one_out":
        return centred * (group_size / (group_size - 1))
    if kind == "standardized":
        return centred / (jnp.std(rewards, axis=-1, keepdims=True, ddof=1) + _STANDARD_DEVIATION_FLOOR)
    raise ValueError(f"kind is {kind!r}; choose 'leave_one_out' or 'standardized'")


def policy_diagnostics(
    log_probs: Float[Array, "*B T"],
    old_log_probs: Float[Array, "*B T"],
    clip_range: Float[ArrayLike, ""],
    weights: Float[Array, "*B T"],
) -> dict[str, Float[Array, ""]]:
    """Statistics of the change from the behaviour policy; `ratio = pi / pi_old`.

    Args:
        log_probs: log pi(a_t | o_t) of the policy that learns, nats.
        old_log_probs: the same of the policy that acted, nats.
        clip_range: c of the surrogate.
        weights: of the steps in the means (`masked.mean_weights`), 0 where the policy did not choose the action. If
            they sum to 1 over several parts, so do the results, but for the maximum.

    Returns:
        `kl/update`: mean of `(ratio - 1) - log ratio`, an estimate of KL(pi_old || pi), nats;
        `ratio/clip_fraction`: share of steps with `|ratio - 1| > c`; `ratio/mean`; `ratio/max_error`: max of
        `|ratio - 1|`, which must be 0 up to rounding before the first update.

    Reference: Schulman, 2020, Approximating KL Divergence.
    """
    ratio = jnp.exp(log_probs - old_log_probs)
    deviation = jnp.abs(ratio - 1.0)
    is_clipped = (deviation > clip_range).astype(deviation.dtype)
    return {
        "kl/update": masked.weighted_sum(kl.k3(old_log_probs, log_probs), weights),
        "ratio/clip_fraction": masked.weighted_sum(is_clipped, weights),
        "ratio/mean": masked.weighted_sum(ratio, weights),
        "ratio/max_error": masked.masked_max(deviation, weights),
    }
