"""Completions of different lengths in few rows without padding, for the forward and backward passes of learning.

A learner works on `[B, T]` with a row per completion. Inside `evaluate` the sequences move into fewer, fuller rows
`[R, W]`, where tokens do not attend to other sequences, and the results move back. R and W are static. The host chooses
them from the lengths (`choose_packing`); where each sequence goes is computed on the device, from the lengths as well.

Reference: Krell et al., 2021, Efficient Sequence Packing without Cross-contamination.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

_EIGHTHS = 8
_MOST_FILL = 7  # eighths of the positions; packing that saves less is left out


@dataclass(frozen=True)
class Packing:
    """Sizes of packed rows, relative to the padded ones, so that they serve whole batches and minibatches.

    Attributes:
        width: W, in widths of a padded row.
        fill: R * W, in eighths of the padded positions.
        chosen: positions of a packed row that are followed by a completion's token, in eighths of W.
    """

    width: int
    fill: int
    chosen: int

    def rows(self, batch: int, multiple: int = 1) -> int:
        """R for B padded rows, a multiple of `multiple`."""
        return _up(_up(batch * self.fill, _EIGHTHS * self.width), multiple) * multiple

    def columns(self, width: int) -> int:
        """W for padded rows of this width."""
        return width * self.width

    def num_chosen(self, width: int) -> int:
        """The most positions of a row that are followed by a completion's token."""
        return _up(self.columns(width) * self.chosen, _EIGHTHS)


class Places(NamedTuple):
    """Where sequences are in packed rows.

    Attributes:
        rows: row of each sequence, `[B]`; R if it has found none.
        starts: column of its first token, `[B]`.
    """

    rows: Int[jax.Array, " B"]
    starts: Int[jax.Array, " B"]


def place(lengths: Int[jax.Array, " B"], num_rows: int, width: int) -> Places:
    """Places by first-fit decreasing: the longest sequence first, each in the first row that has room.

    Args:
        lengths: tokens of each sequence.
        num_rows: R.
        width: W.
    """
    order = jnp.argsort(-lengths, stable=True)

    def step(free: jax.Array, length: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        fits = free >= length
        row = jnp.where(jnp.any(fits), jnp.argmax(fits), num_rows)
        return free.at[row].add(-length, mode="drop"), (row, width - free.at[row].get(mode="fill", fill_value=0))

    _, (rows, starts) = jax.lax.scan(step, jnp.full(num_rows, width), lengths[order])
    back = jnp.argsort(order)
    return Places(rows=rows[back], starts=starts[back])


def choose_packing(
    lengths: Int[np.ndarray, " B"],
    num_answered: Int[np.ndarray, " B"],
    width: int,
    passes: Sequence[Int[np.ndarray, "_ _"]],
    *,
    most_columns: int | None = None,
    multiple: int = 1,
) -> Packing | None:
    """The smallest packing that holds the rows of every forward pass.

    Args:
        lengths: tokens of each sequence.
        num_answered: those that are its completion's.
        width: columns of a padded row.
        passes: their rows; one array per number of rows.
        most_columns: largest W; None for no limit.
        multiple: R is a multiple of this.

    Returns:
        The packing; None if it would save less than an eighth.
    """
    sets = [rows for rows_of_passes in passes for rows in rows_of_passes]
    factors = [1, 2] if most_columns is None or 2 * width <= most_columns else [1]
    found = [_smallest(lengths, num_answered, width, factor, sets, multiple) for factor in factors]

    def cost(packing: Packing) -> int:
        return packing.rows(len(lengths), multiple) * packing.width

    best = min(found, key=cost)
    return best if cost(best) * _EIGHTHS <= _MOST_FILL * len(lengths) else None


def _smallest(
    lengths: np.ndarray,
    num_answered: np.ndarray,
    width: int,
    factor: int,
    sets: Sequence[np.ndarray],
    multiple: int,
) -> Packing:
    fill = chosen = 1
    for rows in sets:
        num_rows, most = _first_fit(lengths[rows], num_answered[rows], width * factor)
        while Packing(factor, fill, 1).rows(len(rows), multiple) < num_rows:
            fill += 1
        chosen = max(chosen, _up(most * _EIGHTHS, width * factor))
    return Packing(factor, fill, chosen)


def _first_fit(lengths: np.ndarray, num_answered: np.ndarray, width: int) -> tuple[int, int]:
    """As `place`: the number of rows, and the most completion's tokens in one of them."""
    free, answered = np.full(len(lengths), width), np.zeros(len(lengths), int)
    for index in np.argsort(-lengths, kind="stable"):
        row = np.argmax(free >= lengths[index])
        free[row] -= lengths[index]
        answered[row] += num_answered[index]
    return int(np.sum(free < width)), int(np.max(answered))


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor)


class PackedSequences(NamedTuple):
    """Sequences in packed rows.

    Attributes:
        tokens: int32 `[R, W]`.
        segment_ids: number of the sequence that a token belongs to, from 1; 0 at padding; int32 `[R, W]`.
        position: position in the packed rows, flattened, of the token before each action, `[B, T]`; of any token if
            there is none.
        chosen: columns whose next token is an action, first, `[R, A]`.
        is_chosen: whether a column of `chosen` is one, bool `[R, A]`.
        fits: whether each sequence has found a row, bool `[B]`.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    position: jax.Array
    chosen: jax.Array
    is_chosen: jax.Array
    fits: jax.Array


def pack(
    sequences: Int[jax.Array, "B C"],
    attention_mask: Int[jax.Array, "B C"],
    num_steps: int,
    packing: Packing,
    multiple: int = 1,
) -> PackedSequences:
    """Move sequences into packed rows.

    Args:
        sequences: left-padded prompts with completions of at most T tokens; C = P + T columns.
        attention_mask: 1 at tokens, which are contiguous in each row.
        num_steps: T.
        packing: sizes.
        multiple: R is a multiple of this.
    """
    batch, columns = sequences.shape
    num_rows, width = packing.rows(batch, multiple), packing.columns(columns)
    is_token = attention_mask > 0
    lengths = jnp.sum(is_token, axis=1)
    places = place(lengths, num_rows, width)
    first = jnp.argmax(is_token, axis=1)
    base = places.rows * width + places.starts - first  # flat place of a row's column 0
    flat = jnp.where(is_token, base[:, None] + jnp.arange(columns), num_rows * width)

    def scatter(values: jax.Array) -> jax.Array:
        empty = jnp.zeros(num_rows * width, values.dtype)
        return empty.at[flat].set(values, mode="drop").reshape(num_rows, width)

    number = jnp.broadcast_to(jnp.arange(1, batch + 1, dtype=jnp.int32)[:, None], sequences.shape)
    before_action = jnp.zeros(is_token.shape, jnp.int32).at[:, -num_steps - 1 : -1].set(attention_mask[:, -num_steps:])
    precedes = scatter(before_action * is_token) > 0
    chosen = jnp.argsort(~precedes, axis=1, stable=True)[:, : packing.num_chosen(columns)]
    return PackedSequences(
        tokens=scatter(sequences),
        segment_ids=scatter(number),
        position=jnp.clip(base[:, None] + columns - num_steps - 1 + jnp.arange(num_steps), 0, num_rows * width - 1),
        chosen=chosen,
        is_chosen=jnp.take_along_axis(precedes, chosen, axis=1),
        fits=places.rows < num_rows,
    )
