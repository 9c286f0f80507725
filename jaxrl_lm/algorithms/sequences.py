"""Whole sequences under a language model: what every method that learns from given completions computes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_lm.core import masked
from jaxrl_lm.core.token_log_probs import CHUNK_SIZE, token_log_probs
from jaxrl_lm.data import PackedRows
from jaxrl_lm.distributed.sharding import batch_parts
from jaxrl_lm.models import CausalLM
from jaxrl_lm.models.causal_lm import encode
from jaxrl_lm.types import PyTree


class ReferencedRows(NamedTuple):
    """B examples of K completions each, with their log-probabilities under the reference policy.

    Attributes:
        rows: `PackedRows` of `[B, K, T]`: a row is one prompt with one completion, whose tokens are the targets. An
            example of only padding has no weight.
        reference_log_probs: log-probability of each completion under the reference policy, `[B, K]`, nats.
    """

    rows: Any
    reference_log_probs: Any

    def is_example(self) -> Bool[Array, " B"]:
        """Which examples are not padding."""
        return jnp.any(self.rows.is_target, axis=(1, 2))

    def log_ratios(self, model: CausalLM, params: PyTree) -> Float[Array, "B K"]:
        """log pi(y|x) - log pi_ref(y|x) of each completion, nats."""
        return sequence_log_probs(model, params, self.rows) - self.reference_log_probs


def target_log_probs(
    model: CausalLM, params: PyTree, rows: PackedRows
) -> tuple[Float[Array, "B S"], Float[Array, "B S"], Bool[Array, "B S"]]:
    """Log-probability of every token but the first, given those before it in its sequence.

    Args:
        model: any causal language model.
        params: its parameters.
        rows: `[B, T]`.

    Returns:
        `[B, T - 1]` each: log-probabilities and entropies of the policy, in nats, and which tokens are targets.
    """
    hidden_states = encode(model, params, rows.ids, segment_ids=rows.segment_ids).hidden_states
    log_probs, entropies = token_log_probs(
        hidden_states[:, :-1], model.unembedding(params), rows.ids[:, 1:], chunk_size=CHUNK_SIZE * batch_parts()
    )
    return log_probs, entropies, rows.is_target[:, 1:]


def sequence_log_probs(model: CausalLM, params: PyTree, rows: PackedRows) -> Float[Array, "*B"]:
    """Summed log-probability of the target tokens of each row: `sum_t m_t log pi(x_t | x_<t)`.

    Args:
        model: any causal language model.
        params: its parameters.
        rows: `[*B, T]`.

    Returns:
        log-probabilities, nats.
    """
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), rows)
    log_probs, _, is_target = target_log_probs(model, params, flat)
    return masked.masked_sum(log_probs, is_target, axis=-1).reshape(rows.ids.shape[:-1])
