"""Action distributions: categorical with illegal actions, and clipped or squashed Gaussians.

Dimensions: A discrete actions, D dimensions of continuous actions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

ILLEGAL_LOGIT = -1e30  # finite, so that p log p of an illegal action is 0, not NaN
_LOG_2PI = 1.8378770664093453
_LOG_2 = 0.6931471805599453


def mask_logits(logits: Float[Array, "*B A"], action_mask: Bool[Array, "*B A"]) -> Float[Array, "*B A"]:
    """Logits that give illegal actions probability 0; if no action is legal, all are equally likely."""
    return jnp.where(action_mask, logits, ILLEGAL_LOGIT)


def categorical_log_prob(logits: Float[Array, "*B A"], actions: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """log softmax(logits)[action]."""
    # A product with one-hot rows instead of a gather: for a few actions it fuses, forward and backward.
    is_chosen = jnp.arange(logits.shape[-1]) == actions[..., None]
    chosen = jnp.sum(jnp.where(is_chosen, logits, 0.0), axis=-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def categorical_entropy(logits: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """-sum p log p, nats."""
    log_pi = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)


def sample_categorical(key: Key[Array, ""], logits: Float[Array, "*B A"]) -> Int[Array, "*B"]:
    """Draw actions by inverting the cumulative distribution: one uniform number per action."""
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    ends = jnp.cumsum(weights, axis=-1)
    target = jax.random.uniform(key, logits.shape[:-1], jnp.float32) * ends[..., -1]
    drawn = jnp.sum(ends <= target[..., None], axis=-1, dtype=jnp.int32)
    # Rounding can lead past the last action, or to one of probability 0: use the last with positive probability.
    last = jnp.max(jnp.where(weights > 0, jnp.arange(logits.shape[-1], dtype=jnp.int32), 0), axis=-1)
    return jnp.minimum(drawn, last)


def gaussian_log_prob(
    actions: Float[Array, "*B D"], mean: Float[Array, "*B D"], log_std: Float[Array, "... D"]
) -> Float[Array, "*B"]:
    """log N(action; mean, diag(exp(log_std)^2)), summed over dimensions; `log_std` is `[D]`, or one per mean."""
    standard = (actions - mean) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * jnp.square(standard) + log_std + 0.5 * _LOG_2PI, axis=-1)


def gaussian_entropy(log_std: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """Entropy of a diagonal Gaussian, nats."""
    return jnp.sum(log_std + 0.5 * (1.0 + _LOG_2PI), axis=-1)


def squash_log_det(raw: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """log |d tanh(raw) / d raw|, summed over dimensions; exact where tanh saturates.

    Reference: Haarnoja et al., 2018, Soft Actor-Critic, appendix C.
    """
    # 1 - tanh(x)^2 = 4 / (e^x + e^-x)^2
    return jnp.sum(2.0 * (_LOG_2 - raw - jax.nn.softplus(-2.0 * raw)), axis=-1)
