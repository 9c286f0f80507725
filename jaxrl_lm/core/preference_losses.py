"""Losses of reward models on human preferences, one per example; scores are logits."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int


def bradley_terry_loss(
    chosen_scores: Float[Array, "*B"],
    rejected_scores: Float[Array, "*B"],
    margin: Float[ArrayLike, "*#B"] = 0.0,
) -> Float[Array, "*B"]:
    """Negative log-likelihood of a choice between two: `-log sigmoid(chosen - rejected - margin)`.

    Args:
        chosen_scores: scores of the chosen completions.
        rejected_scores: scores of the rejected completions.
        margin: minimum difference, one for all or one per example.

    Returns:
        Losses, nats.

    Reference: Bradley and Terry, 1952, Rank Analysis of Incomplete Block Designs; the margin is that of
    Touvron et al., 2023, Llama 2.
    """
    return jax.nn.softplus(rejected_scores - chosen_scores + margin)


def best_of_k_loss(scores: Float[Array, "*B K"], best: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Negative log-likelihood of a choice among k: `-log softmax(scores)[best]`.

    Args:
        scores: score of each completion of one prompt.
        best: index of the preferred completion.

    Returns:
        Losses, nats.

    Reference: Ziegler et al., 2019, Fine-Tuning Language Models from Human Preferences, equation 1.
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(scores, best)


def binary_preference_loss(scores: Float[Array, "*B"], labels: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Negative log-likelihood of a thumb up or down: `-y log sigmoid(s) - (1 - y) log sigmoid(-s)`.

    Args:
        scores: scores of the completions.
        labels: y, 1 for good and 0 for bad.

    Returns:
        Losses, nats.
    """
    return jnp.asarray(optax.losses.sigmoid_binary_cross_entropy(scores, labels))
