"""Checks of model inputs that would otherwise silently give wrong numbers or NaN.

They read the arrays on the host. Under `jit`, `vmap` and `grad` an array is a tracer without values: then only shape
and dtype are checked, which adds nothing to the program.
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
    """The array on the host; None if it is missing, traced, or sharded over several hosts."""
    if x is None or isinstance(x, Tracer):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x)


def check_shapes(input_ids: ArrayLike, **others: ArrayLike | None) -> None:
    """Require integer ids `[B, T]` and other arrays of the same shape.

    Args:
        input_ids: token ids.
        **others: masks, positions and so on, by name; None is accepted.

    Raises:
        InputError: an array has another shape, or the ids are not integers.
    """
    shape = np.shape(input_ids)
    dtype = jnp.result_type(input_ids)
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"input_ids: shape {shape} must be [B, T] with at least one row and one token")
    if not jnp.issubdtype(dtype, jnp.integer):
        raise InputError(f"input_ids: dtype {dtype} must be an integer type; pass token ids")
    for name, array in others.items():
        if array is not None and np.shape(array) != shape:
            raise InputError(f"{name}: shape {np.shape(array)} must equal that of input_ids, {shape}")


def check_mask(attention_mask: ArrayLike | None) -> None:
    """Refuse a mask with values other than 0 and 1, because positions are its cumulative sum.

    Raises:
        InputError: the mask has another value.
    """
    mask = values_of(attention_mask)
    if mask is not None and not np.all((mask == 0) | (mask == 1)):
        wrong = mask[(mask != 0) & (mask != 1)][0]
        raise InputError(f"attention_mask: {wrong} must be 1 (a token) or 0 (padding)")


def check_range(name: str, ids: ArrayLike | None, size: int, mask: ArrayLike | None, remedy: str) -> None:
    """Refuse entries outside `[0, size)`, for which an embedding returns NaN, unless masked.

    Args:
        name: name of the argument.
        ids: int `[B, T]`; None is accepted.
        size: rows of the embedding.
        mask: nonzero where an entry is read; None for everywhere.
        remedy: what to do.

    Raises:
        InputError: an entry is out of range.
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
    """Refuse token ids outside the vocabulary, except for padding.

    Raises:
        InputError: an id under a nonzero mask is outside the vocabulary.
    """
    check_range(
        "input_ids",
        input_ids,
        config.vocab_size,
        mask,
        "use the model's own tokenizer (vocab_size), and 0 in attention_mask for padding",
    )


def check_left_padded(attention_mask: ArrayLike) -> None:
    """Refuse rows that end with padding, from which the next token would be predicted.

    Raises:
        InputError: a row has padding after a token, or no token.
    """
    mask = values_of(attention_mask)
    if mask is None:
        return
    if not (last := mask[:, -1] != 0).all():
        row = int(np.argmin(last))
        if not mask[row].any():
            raise InputError(f"attention_mask: row {row} has no token; each prompt needs at least one, such as BOS")
        raise InputError(
            f"attention_mask: row {row} ends with padding; pad prompts on the left (data.left_pad, or "
            "a tokenizer's padding_side='left')"
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
    """Refuse invalid inputs of a decoder; arguments as for `CausalLM`.

    Raises:
        InputError: a shape, an id, a position or the cache is invalid.
    """
    check_shapes(input_ids, attention_mask=attention_mask, position_ids=position_ids, segment_ids=segment_ids)
    check_mask(attention_mask)
    mask = attention_mask if segment_ids is None else segment_ids
    check_token_ids(input_ids, mask, config)
    if cache is not None:
        _check_cache(cache, np.shape(input_ids))
    if position_ids is not None:
        remedy = "truncate the rows to the model's context (max_positions)"
        check_range("position_ids", position_ids, config.max_positions, mask, remedy)
    elif segment_ids is None:
        _check_lengths(attention_mask, cache, np.shape(input_ids), config.max_positions)
    else:
        _check_segments(segment_ids, config.max_positions)


def _check_cache(cache: KVCache, shape: tuple[int, ...]) -> None:
    batch, size = np.shape(cache.mask)
    if batch != shape[0]:
        raise InputError(f"cache: made for {batch} rows, but input_ids has {shape[0]}; create one for {shape[0]} rows")
    used = values_of(cache.length)
    if used is not None and int(used) + shape[1] > size:
        raise InputError(
            f"cache: {int(used)} of its {size} slots are used, so {shape[1]} more tokens do not fit; "
            f"create it with size={int(used) + shape[1]} or more"
        )


def _check_lengths(
    attention_mask: ArrayLike | None, cache: KVCache | None, shape: tuple[int, ...], max_positions: int
) -> None:
    """Refuse rows with more tokens, without padding, than the model has positions."""
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
            f"input_ids: row {row} has {lengths[row]} tokens, but the model's context is {max_positions}; truncate it"
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
                "truncate it"
            )
