"""Losses on human preferences, one per example: reward models, whose scores are logits, and DPO."""

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


def dpo_loss(
    chosen_log_ratios: Float[Array, "*B"],
    rejected_log_ratios: Float[Array, "*B"],
    *,
    beta: Float[ArrayLike, ""],
    label_smoothing: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "*B"]:
    """Direct preference optimization: `-(1 - e) log sigmoid(z) - e log sigmoid(-z)`, `z = beta (chosen - rejected)`.

    Args:
        chosen_log_ratios: log pi(y|x) - log pi_ref(y|x) of the chosen completion, summed over its tokens, nats.
        rejected_log_ratios: the same for the rejected completion.
        beta: strength of the KL constraint, 1 / nats; beta times a log-ratio is the policy's implicit reward.
        label_smoothing: e, the assumed share of flipped preferences, in [0, 1/2).

    Returns:
        Losses, nats; log 2 if the policy equals the reference.

    Reference: Rafailov et al., 2023, Direct Preference Optimization: Your Language Model is Secretly a Reward Model,
    equation 7; the smoothing is that of Mitchell, 2023, A Note on DPO with Noisy Preferences.
    """
    logits = beta * (chosen_log_ratios - rejected_log_ratios)
    # log sigmoid(-x) = log sigmoid(x) - x
    return -jax.nn.log_sigmoid(logits) + label_smoothing * logits
