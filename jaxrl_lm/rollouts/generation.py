"""Generate completions with a language model: prefill, then decode with a static cache until every row is done."""

from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxrl_lm import distributed
from jaxrl_lm.core.records import record
from jaxrl_lm.distributed.sharding import DECODING_RULES, constrain, use_rules
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import inputs
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.models.lora import quantise_projections
from jaxrl_lm.models.params import logical_axes, num_params
from jaxrl_lm.models.stack import unstack_layers
from jaxrl_lm.rollouts.decoding import Table, decode_in_stages, decode_while, plan_stages, start
from jaxrl_lm.rollouts.packing import Packing, choose_packing
from jaxrl_lm.rollouts.sampling import SamplingConfig, SamplingWeights
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
        packing: how learning packs the rows (`packed`); None for a row per completion.
    """

    sequences: PyTree
    attention_mask: PyTree
    response_mask: PyTree
    log_probs: PyTree
    values: PyTree
    num_steps: PyTree
    packing: Packing | None = field(default=None, metadata={"static": True})

    @property
    def actions(self) -> Any:
        """The completion tokens, int32 `[B, T]`; the columns of `response_mask`."""
        return self.sequences[:, -self.response_mask.shape[1] :]


def generate(
    model: CausalLM,
    params: PyTree,
    input_ids: ArrayLike,
    attention_mask: ArrayLike,
    key: jax.Array,
    config: SamplingConfig,
    *,
    per_prompt: int = 1,
) -> Generation:
    """Sample completions of prompts.

    A large batch is decoded in stages (`rollouts/decoding.py`): its rows become fewer as completions end. Inside `jit`,
    and for a small batch, all is one program.

    Args:
        model: any causal language model.
        params: its parameters.
        input_ids: left-padded prompts, int `[G, P]`.
        attention_mask: 1 for a token, 0 for padding, `[G, P]`.
        key: one key, of which row b uses `fold_in(key, b)`, or one key per row, `[B]`. The completion of a row depends
            only on its prompt and key, not on the batch or the padding.
        config: lengths, temperature, stop tokens.
        per_prompt: completions of each prompt, which is prefilled once; there are B = G * `per_prompt` rows, those of
            one prompt one after the other.

    Returns:
        Sequences, masks, log-probabilities and values of B rows.

    Raises:
        InputError: prompts and completions exceed the model's context, a prompt is right-padded or empty, or an id is
            outside the vocabulary. Values are only checked outside of `jit`.
    """
    _check_prompts(model, input_ids, attention_mask, key, config, per_prompt)
    ids, mask = distributed.place_batch((jnp.asarray(input_ids), jnp.asarray(attention_mask)))
    # Separate layers decode faster on a CPU, and a scanned stack compiles in the time of one layer.
    is_unrolled = jax.default_backend() == "cpu"
    num_prompts, width = ids.shape
    is_traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, ids, mask, key)))
    if is_traced or (stages := plan_stages(num_prompts * per_prompt, width, config)).is_one:
        return generation_program(model, params, ids, mask, key, config, is_unrolled, per_prompt)
    keys = key if key.ndim else _row_keys(key, num_prompts * per_prompt)
    decoder = _decoder(model, is_unrolled)
    prepared = _prepare(model, params, is_unrolled, config.weights)
    table, num_steps = decode_in_stages(decoder, prepared, ids, mask, keys, config, stages)
    return _generation(ids, mask, table, num_steps)


@partial(jax.jit, static_argnames=("model", "config", "is_unrolled", "per_prompt"))
def generation_program(
    model: CausalLM,
    params: PyTree,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    key: jax.Array,
    config: SamplingConfig,
    is_unrolled: bool,
    per_prompt: int = 1,
) -> Generation:
    """`generate` after its checks, in one stage; `is_unrolled` runs a scanned model's layers separately."""
    batch = input_ids.shape[0] * per_prompt
    keys = key if key.ndim else _row_keys(key, batch)
    decoder, prepared = _decoder(model, is_unrolled), _prepare(model, params, is_unrolled, config.weights)
    with use_rules(DECODING_RULES):
        num_slots = input_ids.shape[1] + config.max_new_tokens
        state = start(decoder, prepared, input_ids, attention_mask, keys, config, num_slots)
        state = decode_while(decoder, prepared, state, config.max_new_tokens, 0, config)
    return _generation(input_ids, attention_mask, state.table, state.step)


@partial(jax.jit, static_argnums=1)
def _row_keys(key: jax.Array, batch: int) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))


def _decoder(model: CausalLM, is_unrolled: bool) -> CausalLM:
    return model.clone(is_scanned=False) if is_unrolled and model.is_scanned else model


@partial(jax.jit, static_argnums=(0, 2, 3))
def _prepare(model: CausalLM, params: PyTree, is_unrolled: bool, weights: SamplingWeights) -> PyTree:
    """The parameters of `_decoder(model, is_unrolled)`."""
    if is_unrolled and model.is_scanned:
        params = unstack_layers(params, model.family.layers)
    with use_rules(DECODING_RULES):
        decoder = _decoder(model, is_unrolled)
        prepared = for_decoding(decoder, params)
        return prepared if weights == "same" else quantise_projections(decoder, prepared, weights)


@jax.jit
def _generation(input_ids: jax.Array, attention_mask: jax.Array, table: Table, num_steps: jax.Array) -> Generation:
    prompts = (jnp.repeat(x, len(table.mask) // len(x), axis=0) for x in (input_ids, attention_mask))
    ids, mask = (x.astype(jnp.int32) for x in prompts)
    return Generation(
        sequences=jnp.concatenate([ids, table.tokens], axis=1),
        attention_mask=jnp.concatenate([mask, table.mask], axis=1),
        response_mask=table.mask,
        log_probs=table.log_probs,
        values=table.values,
        num_steps=num_steps,
    )


LEAST_WORK = 1e11
"""Operations of a padded forward pass from which on packing pays: each size of packed rows compiles for seconds."""


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


def packed(model: CausalLM, generation: Generation, on_host: Generation, passes: Sequence[np.ndarray]) -> Generation:
    """The generation with a packing for learning, if that saves more than the packed program takes to compile.

    Args:
        model: the policy.
        generation: the completions.
        on_host: the same as NumPy arrays.
        passes: the rows of each forward pass of learning, arrays `[passes, rows of a pass]`.
    """
    mask, mesh = on_host.attention_mask, distributed.current_mesh()
    if 2 * num_params(model) * mask.size < LEAST_WORK:
        return generation
    packing = choose_packing(
        mask.sum(axis=1),
        mask[:, -on_host.response_mask.shape[1] :].sum(axis=1),
        mask.shape[1],
        passes,
        most_columns=model.config.max_positions,
        multiple=1 if mesh is None else distributed.num_batch_parts(mesh),
    )
    return replace(generation, packing=packing)


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
    model: CausalLM,
    input_ids: ArrayLike,
    attention_mask: ArrayLike,
    key: jax.Array,
    config: SamplingConfig,
    per_prompt: int,
) -> None:
    inputs.check_shapes(input_ids, attention_mask=attention_mask)
    inputs.check_mask(attention_mask)
    inputs.check_left_padded(attention_mask)
    inputs.check_token_ids(input_ids, attention_mask, model.config)
    num_prompts, prompt_length = np.shape(input_ids)
    if per_prompt < 1:
        raise InputError(f"per_prompt={per_prompt} must be at least 1")
    batch = num_prompts * per_prompt
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        raise InputError(
            f"key: {key.dtype}{list(key.shape)} must be one jax.random.key(seed), or {batch} of them, "
            "one per completion"
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
