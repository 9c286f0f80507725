"""Pack short sequences into rows of equal length, so that batches contain little padding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxrl_lm.core.host_streams import Stream, host_generator
from jaxrl_lm.data.encoding import EncodedText
from jaxrl_lm.errors import InputError


class PackedRows(NamedTuple):
    """R rows of T tokens, each with one or more sequences; NumPy or JAX arrays.

    Attributes:
        ids: tokens, int32 `[R, T]`; 0 in the padding.
        segment_ids: which of its row's sequences a token belongs to, from 1, int32 `[R, T]`; 0 in the padding.
        is_target: whether a token is a target, bool `[R, T]`; never the first token of a sequence.
    """

    ids: Any
    segment_ids: Any
    is_target: Any


class CutCounts(NamedTuple):
    """How many sequences had to be changed to fit into rows.

    Attributes:
        num_split: texts without a prompt that became several sequences; all their tokens are kept.
        num_truncated: truncated completions.
        num_dropped: sequences without a remaining target.
    """

    num_split: int
    num_truncated: int
    num_dropped: int


def fit_sequences(
    sequences: Sequence[EncodedText], *, row_length: int, is_loss_on_all: bool
) -> tuple[list[EncodedText], CutCounts]:
    """Split texts and truncate completions that are longer than a row, and drop sequences without targets.

    Args:
        sequences: sequences of any length.
        row_length: T, tokens, at least 2.
        is_loss_on_all: whether all tokens are targets, including prompts.

    Returns:
        Sequences of at most T tokens in the same order, and the number of changed ones.
    """
    fitted: list[EncodedText] = []
    num_split = num_truncated = num_dropped = 0
    for sequence in sequences:
        pieces = [sequence]
        if len(sequence.ids) > row_length and sequence.num_prompt_tokens:
            num_truncated += 1
            pieces = [sequence[:row_length]]
        elif len(sequence.ids) > row_length:
            num_split += 1
            pieces = [sequence[start : start + row_length] for start in range(0, len(sequence.ids), row_length)]
        kept = [piece for piece in pieces if _targets(piece, is_loss_on_all).any()]
        num_dropped += not kept
        fitted += kept
    return fitted, CutCounts(num_split, num_truncated, num_dropped)


def plan_rows(lengths: Int[np.ndarray, " N"], *, row_length: int, window: int, seed: int) -> list[list[int]]:
    """Assign sequences to rows by first-fit decreasing within windows of a random order.

    The longest sequence comes first, and each goes into the first row with enough space. This needs at most 11/9 of the
    optimal number of rows, plus one.

    Args:
        lengths: tokens of each sequence, at most `row_length`.
        row_length: T, tokens.
        window: sequences that are packed together; larger windows pack tighter, smaller ones mix better.
        seed: random seed of the order.

    Returns:
        The indices of the sequences in each row; each index occurs once.

    Raises:
        InputError: a sequence is longer than a row.
    """
    if len(lengths) and int(np.max(lengths)) > row_length:
        raise InputError(f"row_length={row_length}: a sequence has {int(np.max(lengths))} tokens; cut it, or raise it")
    order = host_generator(Stream.PACKING, seed).permutation(len(lengths))
    windows = (order[start : start + window] for start in range(0, len(order), window))
    return [row for members in windows for row in _first_fit_decreasing(members, lengths, row_length)]


def pack_sequences(
    sequences: Sequence[EncodedText], plan: list[list[int]], *, row_length: int, is_loss_on_all: bool
) -> PackedRows:
    """Pack sequences into rows as planned.

    Args:
        sequences: sequences of at most `row_length` tokens.
        plan: indices of the sequences of each row.
        row_length: T, tokens.
        is_loss_on_all: whether all tokens are targets, including prompts.

    Returns:
        The rows.
    """
    shape = (len(plan), row_length)
    ids, segment_ids, is_target = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, members in enumerate(plan):
        start = 0
        for number, member in enumerate(members, 1):
            sequence = sequences[member]
            stop = start + len(sequence.ids)
            ids[row, start:stop] = sequence.ids
            segment_ids[row, start:stop] = number
            is_target[row, start:stop] = _targets(sequence, is_loss_on_all)
            start = stop
    return PackedRows(ids, segment_ids, is_target)


def _targets(sequence: EncodedText, is_loss_on_all: bool) -> Bool[np.ndarray, " T"]:
    """Which tokens are targets: all but the first, or those after the prompt that are the assistant's if marked."""
    places = np.arange(len(sequence.ids))
    if is_loss_on_all:
        return places >= 1
    is_target = places >= max(1, sequence.num_prompt_tokens)
    return is_target if sequence.is_assistant is None else is_target & np.array(sequence.is_assistant, bool)


def _first_fit_decreasing(members: np.ndarray, lengths: np.ndarray, row_length: int) -> list[list[int]]:
    space = np.full(len(members), row_length)
    rows: list[list[int]] = [[] for _ in members]
    for member in members[np.argsort(-lengths[members], kind="stable")]:
        row = int(np.argmax(space >= lengths[member]))
        space[row] -= lengths[member]
        rows[row].append(int(member))
    return [row for row in rows if row]
