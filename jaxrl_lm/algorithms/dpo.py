"""Direct preference optimization: learn a policy from pairs of completions, without reward model or sampling.

    L = mean -log sigmoid( beta [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)] )

The reference log-probabilities are computed once before training and are part of the batch.

Reference: Rafailov et al., 2023, Direct Preference Optimization: Your Language Model is Secretly a Reward Model.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxrl_lm import checks
from jaxrl_lm.algorithms.sequences import ReferencedRows
from jaxrl_lm.algorithms.supervised import AdamWConfig, LossFunction, LossSums, make_supervised
from jaxrl_lm.core import masked
from jaxrl_lm.core.records import record
from jaxrl_lm.models import CausalLM
from jaxrl_lm.types import PyTree, SupervisedLearner


@dataclass(frozen=True, kw_only=True)
class DPOLossConfig:
    """Settings of the loss.

    Attributes:
        beta: strength of the regularization towards the reference policy.
        label_smoothing: assumed share of preferences with swapped labels.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks.above(self, 0, "beta")
        checks.fraction(self, "label_smoothing", below=0.5)


@record
class DPOHyperparams:
    """Settings that are traced."""

    beta: PyTree
    label_smoothing: PyTree


def make_dpo(
    config: AdamWConfig, loss_config: DPOLossConfig, model: CausalLM, *, num_updates: int
) -> SupervisedLearner:
    """DPO's `init` and `update`.

    A batch is `ReferencedRows` of pairs, `[num_accumulated, B, 2, T]`; the first completion is the chosen one.

    Args:
        config: the optimizer.
        loss_config: the loss; its settings become part of the state.
        model: any causal language model.
        num_updates: length of the learning rate schedule.

    Returns:
        The algorithm. Its metrics are means over pairs: `rewards/chosen` and `rewards/rejected`, beta times the
        log-ratio of policy and reference; `rewards/margin`, their difference; `rewards/accuracy`, the share of pairs
        with a margin above 0 (a tie counts half).
    """
    traced = DPOHyperparams(beta=loss_config.beta, label_smoothing=loss_config.label_smoothing)
    return make_supervised(config, make_dpo_loss(model), num_updates=num_updates, loss_hyperparams=traced)


def make_dpo_loss(model: CausalLM) -> LossFunction:
    """The loss function `(params, ReferencedRows, DPOHyperparams) -> LossSums` of DPO."""

    def loss(params: PyTree, batch: ReferencedRows, traced: DPOHyperparams) -> LossSums:
        log_ratios, is_pair = batch.log_ratios(model, params), batch.is_example()
        chosen, rejected = log_ratios[:, 0], log_ratios[:, 1]
        losses = dpo_loss(chosen, rejected, beta=traced.beta, label_smoothing=traced.label_smoothing)
        rewards = {"chosen": traced.beta * chosen, "rejected": traced.beta * rejected}
        margin = rewards["chosen"] - rewards["rejected"]
        numbers = rewards | {"margin": margin, "accuracy": (1.0 + jnp.sign(margin)) / 2.0}
        return LossSums(
            loss=masked.masked_sum(losses, is_pair),
            weight=jnp.sum(is_pair, dtype=jnp.float32),
            metrics={
                f"rewards/{name}": jax.lax.stop_gradient(masked.masked_sum(x, is_pair)) for name, x in numbers.items()
            },
        )

    return loss


def dpo_loss(
    chosen_log_ratios: Float[Array, "*B"],
    rejected_log_ratios: Float[Array, "*B"],
    *,
    beta: Float[ArrayLike, ""],
    label_smoothing: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "*B"]:
    """Loss of each pair: `-(1 - e) log sigmoid(z) - e log sigmoid(-z)`, `z = beta (chosen - rejected)`.

    Args:
        chosen_log_ratios: log pi(y|x) - log pi_ref(y|x) of the chosen completion, summed over its tokens, nats.
        rejected_log_ratios: the same for the rejected completion.
        beta: strength of the KL constraint, 1 / nats; beta times a log-ratio is the policy's implicit reward.
        label_smoothing: e, the assumed share of flipped preferences, in [0, 1/2).

    Returns:
        Losses, nats; log 2 if the policy equals the reference.

    Reference: Rafailov et al., 2023, equation 7; the smoothing is that of Mitchell, 2023, A Note on DPO with Noisy
    Preferences.
    """
    logits = beta * (chosen_log_ratios - rejected_log_ratios)
    # log sigmoid(-x) = log sigmoid(x) - x
    return -jax.nn.log_sigmoid(logits) + label_smoothing * logits
