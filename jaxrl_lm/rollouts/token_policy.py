"""A language model as a policy whose actions are tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl_lm.core import masked
from jaxrl_lm.core.token_log_probs import token_log_probs
from jaxrl_lm.models.causal_lm import CausalLM, encode
from jaxrl_lm.rollouts.generation import Generation
from jaxrl_lm.types import ActionEvaluation, Evaluate, PyTree, Trajectory


@struct.dataclass(kw_only=True)
class TokenObservations:
    """Prompt and answer; the observation of step t is all that stands before the answer's token t.

    Attributes:
        sequences: left-padded prompt and answer, int32 `[B, P + T]`.
        attention_mask: 1 for their tokens, int32 `[B, P + T]`.
    """

    sequences: PyTree
    attention_mask: PyTree


def observe(generation: Generation) -> TokenObservations:
    """What the policy saw, token by token."""
    return TokenObservations(sequences=generation.sequences, attention_mask=generation.attention_mask)


def make_evaluate(model: CausalLM, *, temperature: float = 1.0, value_model: CausalLM | None = None) -> Evaluate:
    """`evaluate` of a language model, for `TokenObservations` and answers `[B, T]`.

    Args:
        model: the policy. Its own value head gives the values; without one and without `value_model` they are 0.
        temperature: of sampling; it divides the logits here as well, or the ratio would not be 1.
        value_model: a network of its own for the values, with either head; `params` is then
            `{"policy": ..., "value": ...}`.
    """

    def evaluate(params: PyTree, observations: Any, actions: jax.Array) -> ActionEvaluation:
        policy_params = params["policy"] if value_model is not None else params
        before = slice(-actions.shape[1] - 1, -1)  # the positions whose next token is an action
        # A pad id outside the vocabulary would give NaN, which no mask multiplies away.
        is_token = observations.attention_mask[:, -actions.shape[1] :] > 0
        inputs = (observations.sequences, observations.attention_mask)
        output = encode(model, policy_params, *inputs)
        log_probs, entropies = token_log_probs(
            output.hidden_states[:, before],
            model.unembedding(policy_params),
            jnp.where(is_token, actions, 0),
            temperature=temperature,
        )
        values = output.values
        if value_model is not None:
            values = encode(value_model, params["value"], *inputs).values
        values = jnp.zeros_like(log_probs) if values is None else values[:, before]
        return ActionEvaluation(log_probs=log_probs, entropies=entropies, values=values)

    return evaluate


def token_trajectory(
    generation: Generation,
    rewards: jax.Array,
    value_mask: jax.Array,
    *,
    log_probs: jax.Array,
    values: jax.Array,
    discount: float,
    trace_decay: float,
) -> Trajectory:
    """The trajectory of a batch of completions.

    The next step is the next one of `value_mask`, however many masked columns are between them: in a game of several
    turns those are tokens of the environment's, which the policy reads but did not choose.

    Args:
        generation: the completions.
        rewards: `[B, T]`.
        value_mask: 1 where value and reward count, `[B, T]`; its last 1 is where the episode ends.
        log_probs: of the tokens under the policy that drew them, `[B, T]`.
        values: of the states they were drawn in, `[B, T]`.
        discount: gamma.
        trace_decay: lambda of GAE.
    """
    mask = generation.response_mask.astype(jnp.float32)
    has_next = masked.has_next_kept(value_mask).astype(jnp.float32)
    value_mask = value_mask.astype(jnp.float32)
    return Trajectory(
        observations=observe(generation),
        actions=generation.actions,
        log_probs=log_probs * mask,
        values=values * value_mask,
        rewards=rewards * value_mask,
        discounts=discount * has_next,
        traces=trace_decay * has_next,
        next_values=masked.next_kept(values, value_mask) * has_next,
        mask=mask,
        value_mask=value_mask,
    )


@partial(jax.jit, static_argnames=("model", "temperature"))
def answer_log_probs(model: CausalLM, params: PyTree, generation: Generation, temperature: float = 1.0) -> jax.Array:
    """Log-probabilities `[B, T]` of given answers under a model, 0 behind their ends."""
    actions = generation.sequences[:, -generation.response_mask.shape[1] :]
    evaluation = make_evaluate(model, temperature=temperature)(params, observe(generation), actions)
    return evaluation.log_probs * generation.response_mask
