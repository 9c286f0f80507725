"""Levels of `Sokoban-v0`: rooms from a random walk, and starts from an exact search over all positions.

Rooms are those of Racanière et al., 2017, Imagination-Augmented Agents for Deep Reinforcement Learning, which
gym-sokoban and RAGEN draw as well. They pull the box from its target by a search of limited depth. Here the search
covers all pairs of positions of player and box, so that the shortest solution of a level is known and can be chosen.

Letters: L levels, C cells, M inner cells (all but the border), which are numbered row by row as well.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int, UInt8, UInt16

from jaxrl_lm import checks
from jaxrl_lm.envs.drawn_levels import Draw, DrawnLevels
from jaxrl_lm.envs.splitting import hash_layouts
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

MOVES = ("up", "down", "left", "right")
"""The actions in their order."""

DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""(rows, columns) of each move."""

NUM_BOXES = 1
"""Boxes, and targets, of a level."""

UNSOLVABLE = 65_535

_TURN_PROBABILITY = 0.35
_WALK_PER_SIDE = 1.7  # steps of the walk for each row and each column
# What a step opens around the walker: 3x3 cells, row by row.
_STENCILS = (
    (0, 0, 0, 1, 1, 1, 0, 0, 0),
    (0, 1, 0, 0, 1, 0, 0, 1, 0),
    (0, 0, 0, 1, 1, 0, 0, 1, 0),
    (0, 0, 0, 1, 1, 0, 1, 1, 0),
    (0, 0, 0, 0, 1, 1, 0, 1, 0),
)


@struct.dataclass(kw_only=True)
class SokobanBank:
    """Levels of one size.

    Attributes:
        walls: 1 where a wall is, uint8 `[L, C]`; the border is wall.
        targets: cell that the box must be pushed to, int32 `[L]`.
        players: cell where the player starts, int32 `[L]`.
        boxes: cell where the box starts, int32 `[L]`.
        solutions: moves of a shortest solution, int32 `[L]`.
    """

    walls: PyTree
    targets: PyTree
    players: PyTree
    boxes: PyTree
    solutions: PyTree


@dataclass(frozen=True, kw_only=True)
class SokobanLevels(DrawnLevels):
    """Rooms with a target, and a start of player and box that can be solved.

    The start is uniformly random among all that have a shortest solution of `min_solution` to `max_solution` moves. The
    part of a level is decided by its walls.

    Attributes:
        size: rows and columns with the border, 5 to 16.
        min_solution: fewest moves of a shortest solution.
        max_solution: most moves of a shortest solution.
        num_boxes: boxes of a level; 1.
    """

    size: int = 6
    min_solution: int = 1
    max_solution: int = 10
    num_boxes: int = NUM_BOXES

    remedy: ClassVar[str] = "change size, min_solution or max_solution"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.between(self, 5, 16, "size")
        checks.at_least(self, 1, "min_solution")
        checks.between(self, 1, UNSOLVABLE - 1, "max_solution")
        if self.min_solution > self.max_solution:
            raise InputError(f"min_solution={self.min_solution} must be at most max_solution={self.max_solution}")
        if self.num_boxes != NUM_BOXES:
            raise InputError(
                f"num_boxes={self.num_boxes} must be {NUM_BOXES}: the search covers the positions of one box"
            )

    def draw(self, key: jax.Array, num_levels: int) -> Draw:
        """Levels of which some may have no start, and then do not count."""
        room_key, target_key, start_key = jax.random.split(key, 3)
        walls = draw_rooms(room_key, num_levels, self.size)
        inner = jnp.asarray(inner_cells(self.size))
        is_open = walls[:, inner].T == 0
        target = _choose(target_key, is_open)
        moves = shortest_solutions(is_open, target, self.size - 2, limit=self.max_solution).astype(jnp.int32)
        is_start = (moves >= self.min_solution) & (moves <= self.max_solution)
        start = _choose(start_key, is_start)
        bank = SokobanBank(
            walls=walls,
            targets=inner[target],
            players=inner[start // len(inner)],
            boxes=inner[start % len(inner)],
            solutions=jnp.take_along_axis(moves, start[None], axis=0)[0],
        )
        return Draw(bank, is_start.any(axis=0), hash_layouts(walls))

    @property
    def bytes_kept(self) -> int:
        """Walls and four numbers."""
        return self.size**2 + 16

    @property
    def bytes_while_made(self) -> int:
        """As XLA counts the compiled program: mostly tables of all pairs of positions."""
        return 12 * (self.size - 2) ** 4 + 8 * self.size**2

    @property
    def description(self) -> str:
        """What the levels are."""
        moves = f"{self.min_solution} to {self.max_solution} moves"
        return f"rooms of {self.size}x{self.size} cells with solutions of {moves}"


def draw_rooms(key: jax.Array, num_levels: int, size: int) -> UInt8[Array, "L C"]:
    """The walls of rooms that a random walk opens.

    The walk begins at a random inner cell. Each of its 1.7 * 2 * size steps takes a new random direction with
    probability 0.35, goes one cell unless that is the border, and opens one of five small patterns around the walker.

    Args:
        key: consumed.
        num_levels: L.
        size: rows and columns.
    """
    cells = jnp.arange(size**2, dtype=jnp.int32)
    rows, columns = cells // size, cells % size
    is_border = (rows == 0) | (rows == size - 1) | (columns == 0) | (columns == size - 1)
    stencils, directions = jnp.array(_STENCILS, bool), jnp.array(DIRECTIONS, jnp.int32)

    def step(carry: tuple[jax.Array, ...], key: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        is_open, place, direction = carry
        turn_key, direction_key, stencil_key = jax.random.split(key, 3)
        does_turn = jax.random.uniform(turn_key, (num_levels,), jnp.float32) < _TURN_PROBABILITY
        direction = jnp.where(does_turn, jax.random.randint(direction_key, (num_levels,), 0, 4, jnp.int32), direction)
        place = jnp.clip(place + directions[direction], 1, size - 2)
        stencil = stencils[jax.random.randint(stencil_key, (num_levels,), 0, len(_STENCILS), jnp.int32)]
        down, right = rows - place[:, :1] + 1, columns - place[:, 1:] + 1
        is_near = (down >= 0) & (down < 3) & (right >= 0) & (right < 3)
        opened = jnp.take_along_axis(stencil, jnp.where(is_near, down * 3 + right, 0), axis=1) & is_near
        return (is_open | opened, place, direction), None

    place_key, direction_key, walk_key = jax.random.split(key, 3)
    start = (
        jnp.zeros((num_levels, size**2), bool),
        jax.random.randint(place_key, (num_levels, 2), 1, size - 1, jnp.int32),
        jax.random.randint(direction_key, (num_levels,), 0, 4, jnp.int32),
    )
    steps = jax.random.split(walk_key, int(_WALK_PER_SIDE * 2 * size))
    (is_open, _, _), _ = jax.lax.scan(step, start, steps)
    return (~is_open | is_border).astype(jnp.uint8)


def shortest_solutions(
    is_open: Bool[Array, "M L"], target: Int[Array, " L"], side: int, *, limit: int
) -> UInt16[Array, "M*M L"]:
    """Moves of a shortest solution from every position of player and box, searched for all levels at once.

    moves = 0 where the box is on the target,  moves(s) = 1 + min over legal moves of moves(where the move leads)

    Args:
        is_open: where an inner cell is no wall.
        target: inner cell of the target.
        side: inner rows and columns; M = side^2.
        limit: longest solution that is searched for.

    Returns:
        Row `player * M + box`; `UNSOLVABLE` for longer solutions, for none, and where player or box cannot be.
    """
    table = _pairs(side)
    is_floor = jnp.concatenate([is_open, jnp.zeros_like(is_open[:1])])  # the border comes last
    players, boxes = np.divmod(np.arange(side**4), side**2)
    can_be = is_open[players] & is_open[boxes] & (players != boxes)[:, None]
    solved = jnp.where(can_be & (boxes[:, None] == target), 0, UNSOLVABLE).astype(jnp.uint16)

    def search(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        num_done, old, _ = carry
        new = old
        for move in range(len(MOVES)):
            is_legal = is_floor[table.player[:, move]] & is_floor[table.box[:, move]]
            there = jnp.minimum(old[table.pair[:, move]], UNSOLVABLE - 1) + 1
            new = jnp.where(can_be & is_legal, jnp.minimum(new, there), new)
        return num_done + 1, new, (new != old).any()

    start = (jnp.zeros((), jnp.int32), solved, jnp.array(True))
    return jax.lax.while_loop(lambda carry: (carry[0] < limit) & carry[2], search, start)[1]


class _Pairs(NamedTuple):
    """Where each move from each pair of positions leads if nothing is in the way, int32 `[M * M, 4]` each.

    Attributes:
        player: inner cell of the player; M for the border.
        box: inner cell of the box; M for the border.
        pair: both together; any number where one of them is in the border.
    """

    player: np.ndarray
    box: np.ndarray
    pair: np.ndarray


@functools.cache
def _pairs(side: int) -> _Pairs:
    num_cells = side**2
    rows, columns = np.divmod(np.arange(num_cells), side)
    ahead = np.full((num_cells, len(MOVES)), num_cells)
    for move, (down, right) in enumerate(DIRECTIONS):
        row, column = rows + down, columns + right
        is_inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
        ahead[is_inside, move] = (row * side + column)[is_inside]
    players, boxes = np.divmod(np.arange(num_cells**2), num_cells)
    player = ahead[players]
    box = np.where(player == boxes[:, None], ahead[boxes], boxes[:, None])
    pair = np.minimum(player, num_cells - 1) * num_cells + np.minimum(box, num_cells - 1)
    return _Pairs(player, box, pair)


def inner_cells(size: int) -> Int[np.ndarray, " M"]:
    """The cells that are not in the border, int32."""
    rows, columns = np.divmod(np.arange((size - 2) ** 2), size - 2)
    return ((rows + 1) * size + columns + 1).astype(np.int32)


def _choose(key: jax.Array, is_choice: jax.Array) -> jax.Array:
    """A random row among those allowed in each column, int32 `[L]`; row 0 where none is."""
    place = jnp.cumsum(is_choice, axis=0, dtype=jnp.int32)
    wanted = jax.random.randint(key, place.shape[1:], 0, jnp.maximum(place[-1], 1), jnp.int32)
    return jnp.argmax(place > wanted, axis=0).astype(jnp.int32)
