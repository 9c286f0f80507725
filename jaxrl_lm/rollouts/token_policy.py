"""A language model as a policy whose actions are tokens."""

from dataclasses import field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_lm.core import masked, policy_losses
from jaxrl_lm.core.records import record
from jaxrl_lm.core.token_log_probs import CHUNK_SIZE, token_log_probs
from jaxrl_lm.distributed.sharding import batch_parts
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import inputs
from jaxrl_lm.models.causal_lm import CausalLM, encode
from jaxrl_lm.models.partition import without_adapters
from jaxrl_lm.rollouts.generation import Generation
from jaxrl_lm.rollouts.packing import Packing, pack
from jaxrl_lm.types import ActionEvaluation, Evaluate, Metrics, PyTree, Trajectory


@record
class TokenObservations:
    """Prompt and completion; the observation of step t is everything before completion token t.

    Attributes:
        sequences: left-padded prompt and completion, int32 `[B, P + T]`.
        attention_mask: 1 for their tokens, int32 `[B, P + T]`.
        packing: how `evaluate` packs them; None for a row per sequence.
    """

    sequences: PyTree
    attention_mask: PyTree
    packing: Packing | None = field(default=None, metadata={"static": True})


def observe(generation: Generation) -> TokenObservations:
    """The policy's observations of a generation.

    Raises:
        InputError: the shapes do not fit, or a prompt is right-padded. Values are only checked outside of `jit`.
    """
    prompt = generation.attention_mask[:, : -generation.response_mask.shape[1]]
    if not prompt.shape[1]:
        raise InputError(
            f"response_mask: its {generation.response_mask.shape[1]} columns are all that sequences has; "
            "begin each row with a prompt of at least one token"
        )
    inputs.check_shapes(generation.sequences, attention_mask=generation.attention_mask)
    inputs.check_mask(generation.attention_mask)
    inputs.check_left_padded(prompt)
    return TokenObservations(
        sequences=generation.sequences, attention_mask=generation.attention_mask, packing=generation.packing
    )


def sequence_lengths(observations: TokenObservations) -> jax.Array:
    """Tokens of prompt and completion, int32 `[B]`."""
    return jnp.sum(observations.attention_mask, axis=1)


def make_evaluate(model: CausalLM, *, temperature: float = 1.0, value_model: CausalLM | None = None) -> Evaluate:
    """`evaluate` of a language model, for `TokenObservations` and completions `[B, T]`.

    Args:
        model: the policy. Its value head gives the values; without one and without `value_model` they are 0.
        temperature: sampling temperature; it also divides the logits here, or the ratio would not be 1.
        value_model: separate value network, with either head; `params` is then `{"policy": ..., "value": ...}`.
    """

    def evaluate(params: PyTree, observations: Any, actions: jax.Array) -> ActionEvaluation:
        _check_actions(model, observations, actions)
        policy_params = params["policy"] if value_model is not None else params
        inputs = _inputs(observations, actions)
        output = encode(model, policy_params, **inputs.seen)
        log_probs, entropies = token_log_probs(
            inputs.before_actions(output.hidden_states),
            model.unembedding(policy_params),
            inputs.actions,
            temperature=temperature,
            chunk_size=CHUNK_SIZE * batch_parts(),
        )
        log_probs, entropies = inputs.by_action(log_probs), inputs.by_action(entropies)
        values = output.values
        if value_model is not None:
            values = encode(value_model, params["value"], **inputs.seen).values
        values = jnp.zeros_like(log_probs) if values is None else inputs.values_of(values)
        return ActionEvaluation(log_probs=log_probs, entropies=entropies, values=values)

    return evaluate


class _Padded:
    """A row per sequence.

    Attributes:
        seen: what the model reads, as keyword arguments of `encode`.
        actions: the tokens whose log-probabilities are computed, a row per row of `seen`.
    """

    def __init__(self, observations: TokenObservations, actions: jax.Array) -> None:
        self._before = slice(-actions.shape[1] - 1, -1)  # the positions whose next token is an action
        self.seen: dict[str, Any] = {"input_ids": observations.sequences, "attention_mask": observations.attention_mask}
        # A pad id outside the vocabulary would give NaN, which no mask multiplies away.
        self.actions = jnp.where(observations.attention_mask[:, -actions.shape[1] :] > 0, actions, 0)

    def before_actions(self, hidden_states: jax.Array) -> jax.Array:
        """The hidden states that predict `actions`."""
        return hidden_states[:, self._before]

    def by_action(self, results: jax.Array) -> jax.Array:
        """Numbers for `actions` as `[B, T]`."""
        return results

    def values_of(self, values: jax.Array) -> jax.Array:
        """Numbers for all tokens of `seen` as `[B, T]`: those of the token before each action."""
        return values[:, self._before]


class _Packed:
    """Several sequences per row, as `_Padded`; what belongs to one that has found no row is NaN."""

    def __init__(self, observations: TokenObservations, actions: jax.Array) -> None:
        assert observations.packing is not None
        mask = observations.attention_mask
        self._packed = pack(observations.sequences, mask, actions.shape[1], observations.packing, batch_parts())
        tokens, chosen = self._packed.tokens, self._packed.chosen
        self.seen: dict[str, Any] = {"input_ids": tokens, "segment_ids": self._packed.segment_ids}
        following = jnp.take_along_axis(tokens, jnp.minimum(chosen + 1, tokens.shape[1] - 1), axis=1)
        self.actions = jnp.where(self._packed.is_chosen, following, 0)

    def before_actions(self, hidden_states: jax.Array) -> jax.Array:
        return jnp.take_along_axis(hidden_states, self._packed.chosen[..., None], axis=1)

    def by_action(self, results: jax.Array) -> jax.Array:
        packed = self._packed
        rows = jnp.arange(len(packed.chosen))[:, None]
        columns = jnp.where(packed.is_chosen, packed.chosen, packed.tokens.shape[1])
        return self.values_of(jnp.zeros(packed.tokens.shape, results.dtype).at[rows, columns].set(results, mode="drop"))

    def values_of(self, values: jax.Array) -> jax.Array:
        found = jnp.take(values.reshape(-1), self._packed.position)
        return jnp.where(self._packed.fits[:, None], found, jnp.nan)


def _inputs(observations: TokenObservations, actions: jax.Array) -> _Padded | _Packed:
    return (_Padded if observations.packing is None else _Packed)(observations, actions)


def _check_actions(model: CausalLM, observations: TokenObservations, actions: jax.Array) -> None:
    (batch, width), num_steps = observations.sequences.shape, actions.shape[-1]
    if actions.ndim != 2 or len(actions) != batch or not 0 < num_steps < width:
        raise InputError(
            f"actions: shape {actions.shape} must be [{batch}, T] with T below {width}, the columns of sequences: "
            "give the completions' tokens (generation.actions)"
        )
    mask = observations.attention_mask[:, -num_steps:]
    size = model.config.vocab_size
    inputs.check_range("actions", actions, size, mask, "that is the model's vocab_size: use its own tokenizer")


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

    The next step is the next 1 in `value_mask`. In a multi-turn game, the masked columns in between are tokens of the
    environment, which the policy reads but did not sample.

    Args:
        generation: the completions.
        rewards: `[B, T]`.
        value_mask: 1 where value and reward count, `[B, T]`; the episode ends at its last 1.
        log_probs: log-probabilities of the tokens under the sampling policy, `[B, T]`.
        values: values of the states before the tokens, `[B, T]`.
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


def answer_log_probs(model: CausalLM, params: PyTree, generation: Generation, temperature: float = 1.0) -> jax.Array:
    """Log-probabilities `[B, T]` of given completions under a model, 0 where the mask is 0.

    Raises:
        InputError: as `observe`, or an id is outside the vocabulary.
    """
    observations = observe(generation)
    inputs.check_token_ids(observations.sequences, observations.attention_mask, model.config)
    return _log_probs(model, params, generation, temperature)


@partial(jax.jit, static_argnames=("model", "temperature"))
def _log_probs(model: CausalLM, params: PyTree, generation: Generation, temperature: float) -> jax.Array:
    evaluation = make_evaluate(model, temperature=temperature)(params, observe(generation), generation.actions)
    return evaluation.log_probs * generation.response_mask


def rollout_error(log_probs: jax.Array, generation: Generation) -> Metrics:
    """How far scoring and decoding disagree, by their probability ratio.

    `ratio/rollout_max_error` is the largest |ratio - 1|, `ratio/rollout_outside` the share of tokens whose ratio is not
    in [0.9, 1.1].

    Args:
        log_probs: log-probabilities of the completion tokens as computed for learning, `[B, T]`.
        generation: the completions, with the log-probabilities of decoding.
    """
    error = jnp.abs(jnp.expm1(log_probs - generation.log_probs))
    mask = generation.response_mask
    return {
        "ratio/rollout_max_error": masked.masked_max(error, mask),
        "ratio/rollout_outside": masked.masked_mean((error > 0.1).astype(jnp.float32), mask),
    }


def importance_of(
    log_probs: jax.Array, generation: Generation, limit: float | None
) -> tuple[jax.Array | None, Metrics]:
    """Importance weights `[B, T]` of completions for a policy that may not be the one that sampled them, and metrics.

    `ratio/importance` is the mean weight, `ratio/importance_truncated` the share of tokens whose weight is the limit.

    Args:
        log_probs: of the completion tokens under the policy before learning, `[B, T]`.
        generation: the completions, with the log-probabilities under the policy that sampled them.
        limit: largest weight; None for no weights.
    """
    if limit is None:
        return None, {}
    mask = generation.response_mask
    weights = policy_losses.truncated_importance(masked.zero_masked(log_probs, mask), generation.log_probs, limit)
    is_truncated = (weights >= limit).astype(jnp.float32)
    return weights, {
        "ratio/importance": masked.masked_mean(weights, mask),
        "ratio/importance_truncated": masked.masked_mean(is_truncated, mask),
    }


def reference_of(reference_params: PyTree | None, policy_params: PyTree) -> PyTree:
    """The parameters of the reference policy, with the policy's heads, which are not used.

    Args:
        reference_params: parameters without heads; None if the reference is the policy's base without its adapters,
            whose arrays are those of the policy.
        policy_params: the policy's parameters.
    """
    if reference_params is None:
        return without_adapters(policy_params)
    return {**policy_params, **reference_params}
