"""Supervised fine-tuning: cross entropy of the target tokens, averaged over all tokens of a batch.

    L = - sum_t m_t log pi(x_t | x_<t of its sequence) / sum_t m_t

with m_t = 1 at the target tokens. The logits of a whole row are never materialised (`core/token_log_probs.py`).

Reference: Ouyang et al., 2022, Training Language Models to Follow Instructions with Human Feedback, section 3.
"""

import jax
import jax.numpy as jnp

from jaxrl_lm.algorithms.sequences import target_log_probs
from jaxrl_lm.algorithms.supervised import AdamWConfig, LossSums, make_supervised
from jaxrl_lm.core import masked
from jaxrl_lm.data import PackedRows
from jaxrl_lm.models import CausalLM
from jaxrl_lm.types import PyTree, SupervisedLearner


def make_sft(config: AdamWConfig, model: CausalLM, *, num_updates: int) -> SupervisedLearner:
    """SFT's `init` and `update`; batches are `PackedRows` of `[num_accumulated, B, T]`.

    Args:
        config: the optimizer.
        model: any causal language model.
        num_updates: length of the learning rate schedule.

    Returns:
        The algorithm; losses and entropies are in nats per token.
    """

    def loss(params: PyTree, rows: PackedRows, _: PyTree) -> LossSums:
        return sum_token_losses(model, params, rows)

    return make_supervised(config, loss, num_updates=num_updates)


def sum_token_losses(model: CausalLM, params: PyTree, rows: PackedRows) -> LossSums:
    """Summed cross entropy of the target tokens, with their number.

    Args:
        model: any causal language model.
        params: its parameters.
        rows: `[B, T]`.

    Returns:
        Sum of -log pi in nats, number of tokens, and the summed entropy of the policy at them.
    """
    log_probs, entropies, is_target = target_log_probs(model, params, rows)
    return LossSums(
        loss=-masked.masked_sum(log_probs, is_target),
        weight=jnp.sum(is_target, dtype=jnp.float32),
        metrics={"policy/entropy": jax.lax.stop_gradient(masked.masked_sum(entropies, is_target))},
    )
