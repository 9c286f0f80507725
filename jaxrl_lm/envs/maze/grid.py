"""The grid of a maze: cells, moves, and the record of many levels.

A cell is numbered row by row: cell = row * width + column. Moves are 0 up, 1 down, 2 left, 3 right.
Letters: L levels, C cells.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, UInt8

from jaxrl_lm.types import PyTree

NUM_MOVES = 4
# (rows, columns) of up, down, left, right
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))
UNREACHABLE = 65_535  # distance of walls, and of cells without a path to the goal


@struct.dataclass(kw_only=True)
class LevelBank:
    """Mazes of one size, made outside the step loop.

    Attributes:
        moves: bit a is 1 where move a leads to an open cell, uint8 `[L, C]`; 0 for a wall.
        starts: cell where an episode begins, int32 `[L]`.
        goals: cell where it ends, int32 `[L]`.
        distances: length of a shortest path from a cell to the goal, uint16 `[L, C]`; `UNREACHABLE` for a wall.
    """

    moves: PyTree
    starts: PyTree
    goals: PyTree
    distances: PyTree

    @property
    def num_levels(self) -> int:
        """L."""
        return self.moves.shape[0]


def legal_moves(is_open: Bool[Array, "H W"]) -> UInt8[Array, " H*W"]:
    """Bits of the moves from each cell to an open neighbour; 0 for a wall. The border counts as wall."""
    padded = jnp.pad(is_open, 1)
    height, width = is_open.shape
    bits = jnp.zeros((height, width), jnp.uint8)
    for move, (rows, columns) in enumerate(DIRECTIONS):
        neighbour = padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
        bits |= (neighbour & is_open).astype(jnp.uint8) << move
    return bits.reshape(-1)


def apply_move(
    cell: Int[Array, "*B"], action: Int[Array, "*B"], moves_here: UInt8[Array, "*B"], width: int
) -> Int[Array, "*B"]:
    """The cell after a move; an illegal move leaves the agent where it is.

    Args:
        cell: the agent's cell.
        action: 0 to 3.
        moves_here: bits of the cell's legal moves.
        width: columns of the grid.
    """
    offsets = jnp.array([rows * width + columns for rows, columns in DIRECTIONS], jnp.int32)
    is_legal = (moves_here >> action.astype(jnp.uint8)) & 1
    return cell + jnp.where(is_legal > 0, offsets[action], 0)


def as_cells(cell: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Row and column of a cell."""
    return cell // width, cell % width
