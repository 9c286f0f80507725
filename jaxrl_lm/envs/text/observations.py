"""Texts that are put together on the device from pieces, whose tokens were looked up once."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxrl_lm.envs.text.answers import PADDING
from jaxrl_lm.envs.text.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Template:
    """A text of P places, each with one of several pieces.

    Its tokens are those of the pieces, one after the other: the text is the same as if it were tokenised as a whole,
    but tokens do not reach over the border of two pieces.

    Attributes:
        tokens: of all pieces of all places, padded, `[N, L]`.
        lengths: tokens of each piece, `[N]`.
        first: row of each place's first piece, `[P]`.
        size: O, the most tokens of a text.
    """

    tokens: Int[np.ndarray, "N L"]
    lengths: Int[np.ndarray, " N"]
    first: Int[np.ndarray, " P"]
    size: int

    def write(self, chosen: Int[Array, " P"]) -> Int[Array, " O"]:
        """The tokens of one text, padded with `PADDING`.

        Args:
            chosen: number of the piece at each place.
        """
        rows = jnp.asarray(self.first) + chosen
        lengths = jnp.asarray(self.lengths)[rows]
        ends = jnp.cumsum(lengths)
        column = jnp.arange(self.size)
        place = jnp.minimum(jnp.searchsorted(ends, column, side="right", method="compare_all"), len(self.first) - 1)
        offset = column - (ends - lengths)[place]
        tokens = jnp.asarray(self.tokens)[rows[place], jnp.clip(offset, 0, self.tokens.shape[1] - 1)]
        return jnp.where(column < ends[-1], tokens, PADDING)


def make_template(places: Sequence[Sequence[str]], vocabulary: Vocabulary) -> Template:
    """The template whose places have these pieces.

    Raises:
        InputError: the vocabulary cannot express a piece.
    """
    encoded = [[vocabulary.encode(piece) if piece else [] for piece in pieces] for pieces in places]
    flat = [ids for pieces in encoded for ids in pieces]
    width = max(map(len, flat))
    counts = [len(pieces) for pieces in encoded]
    return Template(
        tokens=np.array([ids + [PADDING] * (width - len(ids)) for ids in flat], np.int32),
        lengths=np.array([len(ids) for ids in flat], np.int32),
        first=np.cumsum([0, *counts[:-1]]).astype(np.int32),
        size=sum(max(map(len, pieces)) for pieces in encoded),
    )
