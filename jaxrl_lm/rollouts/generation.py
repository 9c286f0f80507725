"""Generate completions with a language model: prefill, then decode with a static cache until every row is done."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from jaxrl_lm import distributed
from jaxrl_lm.core.records import record
from jaxrl_lm.distributed.sharding import DECODING_RULES, constrain, use_rules
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import inputs
from jaxrl_lm.models.attention import KVCache
from jaxrl_lm.models.causal_lm import CausalLM, encode, unembed
from jaxrl_lm.models.params import logical_axes
from jaxrl_lm.models.stack import unstack_layers
from jaxrl_lm.rollouts.sampling import SamplingConfig, sample
from jaxrl_lm.types import PyTree


@record
class Generation:
    """Prompts with their completions; P prompt tokens (left-padded), T tokens after them.

    Attributes:
        sequences: prompt and completion, int32 `[B, P + T]`; padded after the end of the completion.
        attention_mask: 1 at tokens of prompt and completion, int32 `[B, P + T]`.
        response_mask: 1 at tokens that the model sampled, including the stop token, int32 `[B, T]`. It may have gaps:
            in a multi-turn game, the environment's tokens are read but not sampled.
        log_probs: log-probabilities of the completion tokens at the sampling temperature, `[B, T]`; 0 after the end.
        values: value-head output at the state before each completion token, `[B, T]`; 0 after the end and without a
            value head.
        num_steps: decoding steps until every row was done, int32 scalar.
    """

    sequences: PyTree
    attention_mask: PyTree
    response_mask: PyTree
    log_probs: PyTree
    values: PyTree
    num_steps: PyTree

    @property
    def actions(self) -> Any:
        """The completion tokens, int32 `[B, T]`; the columns of `response_mask`."""
        return self.sequences[:, -self.response_mask.shape[1] :]


class _State(NamedTuple):
    step: jax.Array
    cache: KVCache
    tokens: jax.Array  # [B, T]
    log_probs: jax.Array  # [B, T]
    values: jax.Array  # [B, T]
    mask: jax.Array  # [B, T]
    is_done: jax.Array  # [B]
    is_seen: jax.Array | None = None  # [B, V], with a repetition penalty


def generate(
    model: CausalLM,
    params: PyTree,
    input_ids: ArrayLike,
    attention_mask: ArrayLike,
    key: jax.Array,
    config: SamplingConfig,
) -> Generation:
    """Sample a completion for each prompt, in one compiled program.

    Args:
        model: any causal language model.
        params: its parameters.
        input_ids: left-padded prompts, int `[B, P]`.
        attention_mask: 1 for a token, 0 for padding, `[B, P]`.
        key: one key, of which row b uses `fold_in(key, b)`, or one key per row, `[B]`. The completion of a row depends
            only on its prompt and key, not on the batch or the padding.
        config: lengths, temperature, stop tokens.

    Returns:
        Sequences, masks, log-probabilities and values.

    Raises:
        InputError: prompts and completions exceed the model's context, a prompt is right-padded or empty, or an id is
            outside the vocabulary. Values are only checked outside of `jit`.
    """
    _check_prompts(model, input_ids, attention_mask, key, config)
    prompts = distributed.place_batch((jnp.asarray(input_ids), jnp.asarray(attention_mask)))
    # Separate layers decode faster on a CPU, and a scanned stack compiles in the time of one layer.
    is_unrolled = jax.default_backend() == "cpu"
    return generation_program(model, params, *prompts, key, config, is_unrolled)


@partial(jax.jit, static_argnames=("model", "config", "is_unrolled"))
def generation_program(
    model: CausalLM,
    params: PyTree,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    key: jax.Array,
    config: SamplingConfig,
    is_unrolled: bool,
) -> Generation:
    """`generate` after its checks; `is_unrolled` runs a scanned model's layers separately."""
    if is_unrolled and model.is_scanned:
        model, params = model.clone(is_scanned=False), unstack_layers(params, model.family.layers)
    with use_rules(DECODING_RULES):
        return _decode(model, for_decoding(model, params), input_ids, attention_mask, key, config)


def for_decoding(model: CausalLM, params: PyTree) -> PyTree:
    """Parameters as decoding reads them: in the dtype of the activations, which halves what a step reads, and split by
    the rules of decoding."""

    axes: Any = flatten_dict(logical_axes(model))

    def prepare(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        if path[-1] not in ("weight", "embedding", "lora_a", "lora_b"):  # norms and heads are float32
            return leaf
        return constrain(leaf.astype(model.dtype), *axes[path])

    leaves: Any = flatten_dict(params)
    return unflatten_dict({path: prepare(path, leaf) for path, leaf in leaves.items()})


def _decode(
    model: CausalLM,
    params: PyTree,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    key: jax.Array,
    config: SamplingConfig,
) -> Generation:
    batch, prompt_length = input_ids.shape
    row_keys = key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))
    unembedding = model.unembedding(params)

    def run(ids: jax.Array, mask: jax.Array, cache: KVCache | None) -> tuple[jax.Array, jax.Array, Any]:
        output = encode(model, params, ids, mask, cache)
        values = jnp.zeros(batch, jnp.float32) if output.values is None else output.values[:, -1]
        logits = constrain(unembed(output.hidden_states[:, -1], unembedding), "batch", "vocab")
        return constrain(logits, "cache_batch", None), values, output.cache

    def decode(state: _State) -> _State:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        # A finished row continues over padding, which does not affect the other rows.
        mask = (~state.is_done)[:, None].astype(jnp.int32)
        logits, values, cache = run(last, mask, state.cache)
        return _draw(state._replace(cache=cache), logits, values, row_keys, config)

    cache = model.config.init_cache(
        batch, prompt_length + config.max_new_tokens, model.dtype, is_scanned=model.is_scanned
    )
    logits, values, cache = run(input_ids, attention_mask, cache)
    is_seen = None if config.repetition_penalty == 1 else _tokens_in(input_ids, attention_mask, logits.shape[1])
    state = jax.lax.while_loop(
        lambda state: (state.step < config.max_new_tokens) & ~jnp.all(state.is_done),
        decode,
        _draw(_start(cache, batch, config)._replace(is_seen=is_seen), logits, values, row_keys, config),
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
    """Longest prompt, in tokens, that leaves space for a completion in the model's context.

    Raises:
        InputError: there is no space for any prompt.
    """
    longest = model.config.max_positions - max_new_tokens
    if longest < 1:
        raise InputError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in this model's context of "
            f"{model.config.max_positions} tokens; choose fewer"
        )
    return longest


def _check_prompts(
    model: CausalLM, input_ids: ArrayLike, attention_mask: ArrayLike, key: jax.Array, config: SamplingConfig
) -> None:
    inputs.check_shapes(input_ids, attention_mask=attention_mask)
    inputs.check_mask(attention_mask)
    inputs.check_left_padded(attention_mask)
    inputs.check_token_ids(input_ids, attention_mask, model.config)
    batch, prompt_length = np.shape(input_ids)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        raise InputError(
            f"key: {key.dtype}{list(key.shape)} must be one jax.random.key(seed), or {batch} of them, one per prompt"
        )
    vocab_size = model.config.vocab_size
    for name in ("stop_tokens", "suppress_tokens"):
        if max(getattr(config, name), default=0) >= vocab_size:
            raise InputError(
                f"{name}={getattr(config, name)} must be below the model's vocab_size, {vocab_size}; "
                "take the ids from the model's own tokenizer"
            )
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


def _tokens_in(ids: jax.Array, mask: jax.Array, vocab_size: int) -> jax.Array:
    """Whether each row contains each token of the vocabulary, bool `[B, V]`."""
    rows = jnp.arange(ids.shape[0])[:, None]
    return (
        jnp.zeros((ids.shape[0], vocab_size), bool)
        .at[rows, jnp.where(mask > 0, ids, vocab_size)]
        .set(True, mode="drop")
    )


def _draw(state: _State, logits: jax.Array, values: jax.Array, row_keys: jax.Array, config: SamplingConfig) -> _State:
    """Sample each row's next token from the logits `[B, V]` and store it with its value `[B]`."""
    keys = jax.vmap(partial(jax.random.fold_in, data=state.step))(row_keys)
    tokens, log_probs = sample(logits, keys, config, state.step < config.min_new_tokens, state.is_seen)
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
        is_seen=None if state.is_seen is None else state.is_seen.at[jnp.arange(len(tokens)), tokens].set(True),
    )


def decode(tokenizer: Any, generation: Generation) -> list[str]:
    """Texts of the completions, without padding and special tokens.

    Args:
        tokenizer: Hugging Face tokenizer of the model.
        generation: B completions.
    """
    return tokenizer.batch_decode(answer_tokens(generation), skip_special_tokens=True)


def answer_tokens(generation: Generation) -> list[list[int]]:
    """Tokens of the completions without padding, including stop tokens."""
    mask = np.asarray(generation.response_mask).astype(bool)
    return [row[kept].tolist() for row, kept in zip(np.asarray(generation.actions), mask, strict=True)]


def ended_by_stop(generation: Generation, config: SamplingConfig) -> np.ndarray:
    """Whether each completion ended with a stop token rather than at the maximum length, bool `[B]`.

    Args:
        generation: the completions.
        config: their sampling settings.
    """
    mask = np.asarray(generation.response_mask).astype(bool)
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=-1)
    token = np.take_along_axis(np.asarray(generation.actions), last[:, None], axis=-1)[:, 0]
    return np.isin(token, config.stop_tokens) & (mask.sum(axis=-1) > config.ignore_stops_before)
