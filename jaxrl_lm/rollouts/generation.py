"""Answers from a language model: prefill, then decode with a static cache until every row is done."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl_lm.errors import InputError
from jaxrl_lm.models.attention import KVCache
from jaxrl_lm.models.causal_lm import CausalLM, encode, unembed
from jaxrl_lm.rollouts.sampling import SamplingConfig, sample
from jaxrl_lm.types import PyTree


@struct.dataclass(kw_only=True)
class Generation:
    """Prompts with their answers; P prompt tokens (left-padded), T answer tokens.

    Attributes:
        sequences: prompt and answer, int32 `[B, P + T]`; the pad token behind an answer's end.
        attention_mask: 1 for tokens of prompt and answer, int32 `[B, P + T]`.
        response_mask: 1 for tokens of the answer, its stop token included, int32 `[B, T]`.
        log_probs: of the answer's tokens under the model at the sampling temperature, `[B, T]`; 0 behind its end.
        values: of the state that each of the answer's tokens was drawn in, by the model's value head, `[B, T]`; 0
            behind the answer's end, and without a value head.
        num_steps: tokens decoded before every row was done, int32 scalar.
    """

    sequences: PyTree
    attention_mask: PyTree
    response_mask: PyTree
    log_probs: PyTree
    values: PyTree
    num_steps: PyTree

    @property
    def actions(self) -> Any:
        """The completions' tokens, int32 `[B, T]`; the columns of `response_mask`."""
        return self.sequences[:, -self.response_mask.shape[1] :]


class _State(NamedTuple):
    step: jax.Array
    cache: KVCache
    tokens: jax.Array  # [B, T]
    log_probs: jax.Array  # [B, T]
    values: jax.Array  # [B, T]
    mask: jax.Array  # [B, T]
    is_done: jax.Array  # [B]


@partial(jax.jit, static_argnames=("model", "config"))
def generate(
    model: CausalLM,
    params: PyTree,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    key: jax.Array,
    config: SamplingConfig,
) -> Generation:
    """Draw an answer to each prompt.

    Args:
        model: any causal language model.
        params: its parameters.
        input_ids: left-padded prompts, int `[B, P]`.
        attention_mask: 1 for a token, 0 for padding, `[B, P]`.
        key: one key, from which row b draws with `fold_in(key, b)`, or one key a row, `[B]`. With the same key a
            row gets the same answer whatever else is in the batch and however wide its padding.
        config: lengths, temperature, stop tokens.

    Returns:
        sequences, masks, log-probabilities and values.

    Raises:
        InputError: prompts and answers are longer than the model's context.
    """
    batch, prompt_length = input_ids.shape
    _check_context(model, prompt_length, config)
    row_keys = key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))
    unembedding = model.unembedding(params)

    def run(ids: jax.Array, mask: jax.Array, cache: KVCache) -> tuple[jax.Array, jax.Array, KVCache]:
        output = encode(model, params, ids, mask, cache)
        assert output.cache is not None
        values = jnp.zeros(batch, jnp.float32) if output.values is None else output.values[:, -1]
        return unembed(output.hidden_states[:, -1], unembedding), values, output.cache

    def decode(state: _State) -> _State:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        # A row that is done goes on over padding that no query of a live row reads.
        mask = (~state.is_done)[:, None].astype(jnp.int32)
        logits, values, cache = run(last, mask, state.cache)
        return _draw(state._replace(cache=cache), logits, values, row_keys, config)

    cache = model.config.init_cache(batch, prompt_length + config.max_new_tokens, model.dtype)
    logits, values, cache = run(input_ids, attention_mask, cache)
    state = jax.lax.while_loop(
        lambda state: (state.step < config.max_new_tokens) & ~jnp.all(state.is_done),
        decode,
        _draw(_start(cache, batch, config), logits, values, row_keys, config),
    )
    return Generation(
        sequences=jnp.concatenate([input_ids.astype(jnp.int32), state.tokens], axis=1),
        attention_mask=jnp.concatenate([attention_mask.astype(jnp.int32), state.mask], axis=1),
        response_mask=state.mask,
        log_probs=state.log_probs,
        values=state.values,
        num_steps=state.step,
    )


def longest_prompt(model: CausalLM, max_new_tokens: int) -> int:
    """Tokens of a prompt that leave room for an answer in the model's context.

    Raises:
        InputError: there is no room for any prompt.
    """
    longest = model.config.max_positions - max_new_tokens
    if longest < 1:
        raise InputError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in this model's context of "
            f"{model.config.max_positions} tokens; choose fewer"
        )
    return longest


def _check_context(model: CausalLM, prompt_length: int, config: SamplingConfig) -> None:
    context = model.config.max_positions
    if prompt_length + config.max_new_tokens > context:
        raise InputError(
            f"prompts of {prompt_length} tokens and max_new_tokens={config.max_new_tokens} exceed the model's context "
            f"of {context} tokens; shorten one of them"
        )


def _start(cache: KVCache, batch: int, config: SamplingConfig) -> _State:
    shape = (batch, config.max_new_tokens)
    return _State(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        tokens=jnp.full(shape, config.pad_token, jnp.int32),
        log_probs=jnp.zeros(shape, jnp.float32),
        values=jnp.zeros(shape, jnp.float32),
        mask=jnp.zeros(shape, jnp.int32),
        is_done=jnp.zeros(batch, bool),
    )


def _draw(state: _State, logits: jax.Array, values: jax.Array, row_keys: jax.Array, config: SamplingConfig) -> _State:
    """Draw each row's token from the logits `[B, V]` and write it down, with the value `[B]` it was drawn at."""
    keys = jax.vmap(partial(jax.random.fold_in, data=state.step))(row_keys)
    tokens, log_probs = sample(logits, keys, config, state.step < config.min_new_tokens)
    is_live = ~state.is_done

    def write(column: jax.Array, table: jax.Array, otherwise: int) -> jax.Array:
        kept = jnp.where(is_live, column, otherwise).astype(table.dtype)
        return jax.lax.dynamic_update_slice_in_dim(table, kept[:, None], state.step, axis=1)

    stops = jnp.isin(tokens, jnp.array(config.stop_tokens, jnp.int32))
    stops &= state.step >= config.ignore_stops_before
    return state._replace(
        step=state.step + 1,
        tokens=write(tokens, state.tokens, config.pad_token),
        log_probs=write(log_probs, state.log_probs, 0),
        values=write(values, state.values, 0),
        mask=write(jnp.ones_like(tokens), state.mask, 0),
        is_done=state.is_done | stops,
    )


def decode(tokenizer: Any, generation: Generation) -> list[str]:
    """The answers' texts, without padding and special tokens.

    Args:
        tokenizer: Hugging Face tokenizer of the model that answered.
        generation: B answers.
    """
    return tokenizer.batch_decode(answer_tokens(generation), skip_special_tokens=True)


def answer_tokens(generation: Generation) -> list[list[int]]:
    """The answers' tokens without padding, stop tokens included."""
    mask = np.asarray(generation.response_mask).astype(bool)
    tokens = np.asarray(generation.sequences)[:, -mask.shape[1] :]
    return [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]


def ended_by_stop(generation: Generation, config: SamplingConfig) -> np.ndarray:
    """Whether each answer ended by a stop token rather than by its length, bool `[B]`.

    Args:
        generation: the answers.
        config: how they were drawn.
    """
    mask = np.asarray(generation.response_mask)
    tokens = np.asarray(generation.sequences)[:, -mask.shape[1] :]
    length = mask.sum(axis=-1)
    last = np.take_along_axis(tokens, length[:, None] - 1, axis=-1)[:, 0]
    return np.isin(last, config.stop_tokens) & (length > config.ignore_stops_before)
