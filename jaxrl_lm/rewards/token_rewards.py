"""Rewards per token of a completion: a KL penalty to the reference policy, and the score of the completion."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_lm.core import kl, masked


def value_mask_of(response_mask: Int[Array, "B T"], *, is_paid_after_end: bool) -> Int[Array, "B T"]:
    """Steps at which value and reward count: those of the mask, plus one step if the score is paid after the end.

    Ziegler et al. pay the score one step after the last token (at the last token of a completion that fills all T
    steps). The action of that step is padding, so only value and reward use it.
    """
    if not is_paid_after_end:
        return response_mask
    steps = jnp.arange(response_mask.shape[1])
    last = jnp.max(jnp.where(response_mask > 0, steps, -1), axis=-1, keepdims=True)
    return jnp.where(steps == last + 1, 1, response_mask)


def token_rewards(
    scores: Float[Array, " B"],
    log_probs: Float[Array, "B T"],
    reference_log_probs: Float[Array, "B T"],
    response_mask: Int[Array, "B T"],
    value_mask: Int[Array, "B T"],
    kl_coefficient: Float[Array, ""],
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """r_t = -beta (log pi(a_t) - log pi_ref(a_t)), plus the score, once, at the last step of `value_mask`.

    The masks may have gaps, as in a multi-turn game.

    Args:
        scores: one per completion.
        log_probs: under the sampling policy, nats.
        reference_log_probs: under the reference policy, nats.
        response_mask: 1 at completion tokens.
        value_mask: 1 where value and reward count.
        kl_coefficient: beta, in score units per nat.

    Returns:
        Rewards, and the single-sample KL estimate of each token, in nats.

    Reference: Ziegler et al., 2019, Fine-Tuning Language Models from Human Preferences.
    """
    token_kl = jnp.where(response_mask > 0, kl.k1(log_probs, reference_log_probs), 0.0)
    paid = jnp.where(masked.is_last_kept(value_mask), scores[:, None], 0.0)
    return paid - kl_coefficient * token_kl, token_kl
