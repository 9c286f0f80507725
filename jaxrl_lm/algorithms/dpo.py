"""Direct preference optimization: learn a policy from pairs of completions, without reward model or sampling.

    L = mean -log sigmoid( beta [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)] )

The reference log-probabilities are computed once before training and are part of the batch.

Reference: Rafailov et al., 2023, Direct Preference Optimization: Your Language Model is Secretly a Reward Model.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_lm import checks
from jaxrl_lm.algorithms.supervised import AdamWConfig, LossFunction, LossSums, make_supervised
from jaxrl_lm.core import masked, preference_losses
from jaxrl_lm.core.records import record
from jaxrl_lm.core.token_log_probs import token_log_probs
from jaxrl_lm.data import PackedRows
from jaxrl_lm.models import CausalLM
from jaxrl_lm.models.causal_lm import encode
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


class PairRows(NamedTuple):
    """B pairs of completions, the chosen one first; each row is one prompt with one completion.

    Attributes:
        rows: `PackedRows` of `[B, 2, T]` whose targets are the completion tokens; a pair of only padding has no weight.
        reference_log_probs: log-probability of each completion under the reference policy, `[B, 2]`, nats.
    """

    rows: Any
    reference_log_probs: Any


def make_dpo(
    config: AdamWConfig, loss_config: DPOLossConfig, model: CausalLM, *, num_updates: int
) -> SupervisedLearner:
    """DPO's `init` and `update`; batches are `PairRows` of `[num_accumulated, B, ...]`.

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
    return make_supervised(config, make_pair_loss(model), num_updates=num_updates, loss_hyperparams=traced)


def make_pair_loss(model: CausalLM) -> LossFunction:
    """DPO's loss function `(params, PairRows, DPOHyperparams) -> LossSums`."""

    def loss(params: PyTree, batch: PairRows, traced: DPOHyperparams) -> LossSums:
        num_pairs, _, num_tokens = batch.rows.ids.shape
        flat = jax.tree.map(lambda x: x.reshape(2 * num_pairs, num_tokens), batch.rows)
        log_ratios = sequence_log_probs(model, params, flat).reshape(num_pairs, 2) - batch.reference_log_probs
        chosen, rejected = log_ratios[:, 0], log_ratios[:, 1]
        losses = preference_losses.dpo_loss(chosen, rejected, beta=traced.beta, label_smoothing=traced.label_smoothing)
        is_pair = jnp.any(batch.rows.is_target, axis=(1, 2))
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


def sequence_log_probs(model: CausalLM, params: PyTree, rows: PackedRows) -> Float[Array, " B"]:
    """Summed log-probability of the target tokens of each row: `sum_t m_t log pi(x_t | x_<t)`.

    Args:
        model: any causal language model.
        params: its parameters.
        rows: `[B, T]`.

    Returns:
        log-probabilities, nats.
    """
    hidden_states = encode(model, params, rows.ids, segment_ids=rows.segment_ids).hidden_states
    log_probs, _ = token_log_probs(hidden_states[:, :-1], model.unembedding(params), rows.ids[:, 1:])
    return masked.masked_sum(log_probs, rows.is_target[:, 1:], axis=-1)
