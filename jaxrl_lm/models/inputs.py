"""Checks of what models are given: whatever would give wrong numbers, or NaN, without a word.

They read the arrays on the host before anything is traced. Under `jit`, `vmap` and `grad` an array is a tracer, which
has no values: then only its shape and dtype are checked, so that nothing is added to the program.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxrl_lm.errors import InputError
from jaxrl_lm.models.attention import KVCache
from jaxrl_lm.models.config import ModelConfig


def values_of(x: Any) -> np.ndarray | None:
    """The array on the host; None where it is not given, traced, or spread over several hosts."""
    if x is None or isinstance(x, Tracer):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x)


def check_shapes(input_ids: ArrayLike, **others: ArrayLike | None) -> None:
    """Refuse ids that are no integers `[B, T]`, and other arrays whose shape is not theirs.

    Args:
        input_ids: token ids.
        **others: masks, positions and the like, by name; None passes.

    Raises:
        InputError: an array has another shape, or the ids are no integers.
    """
    shape = np.shape(input_ids)
    dtype = jnp.result_type(input_ids)
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"input_ids: shape {shape} must be [B, T], rows of token ids, with at least one of each")
    if not jnp.issubdtype(dtype, jnp.integer):
        raise InputError(f"input_ids: dtype {dtype} must be an integer type; give token ids")
    for name, array in others.items():
        if array is not None and np.shape(array) != shape:
            raise InputError(f"{name}: shape {np.shape(array)} must be that of input_ids, {shape}")


def check_mask(attention_mask: ArrayLike | None) -> None:
    """Refuse a mask with other values than 0 and 1: positions are counted by adding them up.

    Raises:
        InputError: it has another value.
    """
    mask = values_of(attention_mask)
    if mask is not None and not np.all((mask == 0) | (mask == 1)):
        wrong = mask[(mask != 0) & (mask != 1)][0]
        raise InputError(f"attention_mask: {wrong} must be 1 (a token) or 0 (padding)")


def check_range(name: str, ids: ArrayLike | None, size: int, mask: ArrayLike | None, remedy: str) -> None:
    """Refuse entries outside `[0, size)`, which an embedding answers with NaN; those under a 0 of the mask pass.

    Args:
        name: of the argument.
        ids: int `[B, T]`; None passes.
        size: rows of the embedding.
        mask: nonzero where an entry is read; None for everywhere.
        remedy: what to do about it.

    Raises:
        InputError: an entry is outside.
    """
    found, kept = values_of(ids), values_of(mask)
    if found is None or (mask is not None and kept is None):
        return
    is_outside = (found < 0) | (found >= size)
    if kept is not None:
        is_outside &= kept != 0
    if is_outside.any():
        row, column = np.argwhere(is_outside)[0]
        raise InputError(
            f"{name}: {found[row, column]} (row {row}, column {column}) must be at least 0 and below {size}; {remedy}"
        )


def check_token_ids(input_ids: ArrayLike, mask: ArrayLike | None, config: ModelConfig) -> None:
    """Refuse token ids that the embedding has no row for; padding may be any number.

    Raises:
        InputError: an id under a nonzero mask is outside the vocabulary.
    """
    check_range(
        "input_ids",
        input_ids,
        config.vocab_size,
        mask,
        "that is the model's vocab_size: use its own tokenizer, and 0 in attention_mask for padding",
    )


def check_left_padded(attention_mask: ArrayLike) -> None:
    """Refuse rows whose last column is no token: what follows would be predicted from padding.

    Raises:
        InputError: a row has padding behind a token, or no token at all.
    """
    mask = values_of(attention_mask)
    if mask is None:
        return
    if not (last := mask[:, -1] != 0).all():
        row = int(np.argmin(last))
        if not mask[row].any():
            raise InputError(f"attention_mask: row {row} has no token; give each prompt at least one, such as BOS")
        raise InputError(
            f"attention_mask: row {row} ends with padding; pad prompts on the left (data.left_pad, or "
            "padding_side='left' of a tokenizer)"
        )
    if (np.diff(mask.astype(np.int8), axis=1) < 0).any():
        row = int(np.argwhere(np.diff(mask.astype(np.int8), axis=1) < 0)[0, 0])
        raise InputError(f"attention_mask: row {row} has padding between its tokens; pad prompts on the left only")


def check_inputs(
    config: ModelConfig,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None,
    position_ids: ArrayLike | None,
    cache: KVCache | None,
    segment_ids: ArrayLike | None,
) -> None:
    """Refuse what a decoder cannot read; arguments as for `CausalLM`.

    Raises:
        InputError: a shape, an id, a position or the cache does not fit.
    """
    check_shapes(input_ids, attention_mask=attention_mask, position_ids=position_ids, segment_ids=segment_ids)
    check_mask(attention_mask)
    mask = attention_mask if segment_ids is None else segment_ids
    check_token_ids(input_ids, mask, config)
    if cache is not None:
        _check_cache(cache, np.shape(input_ids))
    if position_ids is not None:
        remedy = "that is the model's context (max_positions): cut the rows"
        check_range("position_ids", position_ids, config.max_positions, mask, remedy)
    elif segment_ids is None:
        _check_lengths(attention_mask, cache, np.shape(input_ids), config.max_positions)
    else:
        _check_segments(segment_ids, config.max_positions)


def _check_cache(cache: KVCache, shape: tuple[int, ...]) -> None:
    batch, size = np.shape(cache.mask)
    if batch != shape[0]:
        raise InputError(f"cache: made for {batch} rows, input_ids has {shape[0]}; make one for as many rows")
    used = values_of(cache.length)
    if used is not None and int(used) + shape[1] > size:
        raise InputError(
            f"cache: {int(used)} of its {size} slots are in use, and {shape[1]} more tokens do not fit; "
            f"make it with size={int(used) + shape[1]} or more"
        )


def _check_lengths(
    attention_mask: ArrayLike | None, cache: KVCache | None, shape: tuple[int, ...], max_positions: int
) -> None:
    """Refuse rows of more tokens than the model has positions; padding does not count."""
    lengths = np.full(shape[0], shape[1])
    if attention_mask is not None:
        if shape[1] <= max_positions and cache is None:
            return
        mask = values_of(attention_mask)
        if mask is None:
            return
        lengths = mask.sum(axis=1)
    if cache is not None:
        seen = values_of(cache.mask)
        if seen is None:
            return
        lengths = lengths + seen.sum(axis=1)
    if lengths.max() > max_positions:
        row = int(np.argmax(lengths))
        raise InputError(
            f"input_ids: row {row} has {lengths[row]} tokens, the model's context is {max_positions}; cut the row"
        )


def _check_segments(segment_ids: ArrayLike, max_positions: int) -> None:
    segments = values_of(segment_ids)
    if segments is None:
        return
    if (segments < 0).any():
        raise InputError(f"segment_ids: {segments.min()} must be 0 (padding) or more")
    if segments.shape[1] <= max_positions:
        return
    for row in segments:
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        lengths = np.diff(np.append(starts, len(row)))[row[starts] > 0]
        if lengths.size and lengths.max() > max_positions:
            raise InputError(
                f"segment_ids: a sequence of {lengths.max()} tokens exceeds the model's context of {max_positions}; "
                "cut it"
            )
