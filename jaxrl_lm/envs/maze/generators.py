"""Random mazes: one level each, pure, and quick when vmapped by the thousand.

Four of them lay rooms on the cells of odd row and odd column and open passages between neighbouring rooms; the border
is wall. `random_walls` fills the whole grid, border too, as the benchmarks of minimax and JaxUED do.
Letters: H and W rows and columns of the grid, R and K rows and columns of rooms (H = 2R + 1, W = 2K + 1).

Under vmap a loop runs until its slowest level is done and both branches of a condition are computed; so each step of
a loop here does the same small work whatever the level is at.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jaxrl_lm.envs.maze.grid import DIRECTIONS, NUM_MOVES

Generator = Callable[[jax.Array, int, int], jax.Array]
"""`generator(key, height, width) -> Bool[H, W]`, True where a cell is open; sizes odd and at least 5."""

MAX_WALL_SHARE = 60 / 169  # minimax and JaxUED put up to 60 blocks on 13x13

# The move that leads back is the move with the last bit flipped: up and down, left and right.
_ROOT = NUM_MOVES
_UNVISITED = NUM_MOVES + 1
_IN_TREE = 8  # flag
_RIM = 15


class _Walk(NamedTuple):
    """Wilson's algorithm under way.

    Attributes:
        codes: of each room its last arrow, and `_IN_TREE`.
        here: current room of the walk.
        start: where it began; all rooms before are in the tree.
        is_walking: False while its way is added to the tree.
    """

    codes: jax.Array
    here: jax.Array
    start: jax.Array
    is_walking: jax.Array


def backtracker(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "{height} {width}"]:
    """A perfect maze of long corridors, by depth-first search: go to a random unvisited room, else go back.

    Args:
        key: consumed.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        True where a cell is open.
    """
    return _grid(*_passages(_depth_first_arrows(key, *_rooms(height, width))))


def wilson(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "{height} {width}"]:
    """A perfect maze drawn uniformly from all of them: a uniform spanning tree of the rooms.

    From each room that is not in the tree yet, a random walk goes on until it meets the tree; the walk without its
    loops joins the tree.

    Args:
        key: consumed.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        True where a cell is open.

    Reference:
        Wilson, 1996, Generating random spanning trees more quickly than the cover time.
    """
    return _grid(*_passages(_loop_erased_arrows(key, *_rooms(height, width))))


def kruskal(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "{height} {width}"]:
    """A perfect maze of many short dead ends: the minimum spanning tree of random edge weights.

    Kruskal's tree is the only one of least weight, so it is found by Boruvka's rounds instead: every component opens
    its lightest passage, and there are at most log2(rooms) rounds.

    Args:
        key: consumed.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        True where a cell is open.

    Reference:
        Kruskal, 1956, On the shortest spanning subtree of a graph; Boruvka, 1926, On a minimal problem.
    """
    return _grid(*_minimum_tree(key, *_rooms(height, width)))


def random_walls(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "{height} {width}"]:
    """Blocks at random cells, border too, their share drawn uniformly from 0 to `MAX_WALL_SHARE`.

    Some cells may be cut off: start and goal must be drawn from cells that have a way between them.

    Args:
        key: consumed.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        True where a cell is open.

    Reference:
        Jiang et al., 2023, minimax: Efficient Baselines for Autocurricula in JAX.
    """
    share_key, walls_key = jax.random.split(key)
    return walls_at_share(walls_key, height, width, jax.random.uniform(share_key, maxval=MAX_WALL_SHARE))


def walls_at_share(
    key: Key[Array, ""], height: int, width: int, share: float | Float[Array, ""]
) -> Bool[Array, "{height} {width}"]:
    """Each cell is a wall with probability `share`; one random pair of neighbours is open whatever the share.

    Args:
        key: consumed.
        height: rows of the grid.
        width: columns of the grid.
        share: 0 to 1.

    Returns:
        True where a cell is open.
    """
    walls_key, row_key, column_key = jax.random.split(key, 3)
    row = jax.random.randint(row_key, (), 0, height)
    column = jax.random.randint(column_key, (), 0, width - 1)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    is_kept = (rows == row) & ((columns == column) | (columns == column + 1))
    return is_kept | (jax.random.uniform(walls_key, (height, width)) >= share)


def braided(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "{height} {width}"]:
    """A maze of loops without dead ends: a backtracker's, each dead end of which opens one more of its walls.

    Args:
        key: consumed.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        True where a cell is open.
    """
    tree_key, loop_key = jax.random.split(key)
    rows, columns = _rooms(height, width)
    east, south = _passages(_depth_first_arrows(tree_key, rows, columns))
    west, north = _shift(east, 3), _shift(south, 1)
    is_dead_end = north.astype(jnp.uint8) + south + west + east == 1
    is_open = (north, south, west, east)
    is_closed = [inside & ~is_open[move] for move, inside in enumerate(_inside(rows, columns))]
    opened = _random_choice(jax.random.bits(loop_key, (rows, columns), jnp.uint16), is_closed)
    more_east, more_south = _passages(jnp.where(is_dead_end, opened, _ROOT))
    return _grid(east | more_east, south | more_south)


GENERATORS: dict[str, Generator] = {
    "backtracker": backtracker,
    "wilson": wilson,
    "kruskal": kruskal,
    "random_walls": random_walls,
    "braided": braided,
}
"""Every generator by its name."""


def _rooms(height: int, width: int) -> tuple[int, int]:
    assert min(height, width) >= 5, (height, width)
    assert height % 2 == width % 2 == 1, (height, width)
    return height // 2, width // 2


def _shift(rooms: jax.Array, move: int) -> jax.Array:
    """Each room's value moved to the neighbour in direction `move`; zeros come in at the border."""
    rows, columns = DIRECTIONS[move]
    height, width = rooms.shape
    return jnp.pad(rooms, 1)[1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]


def _inside(rows: int, columns: int) -> list[jax.Array]:
    """For each move, whether it leads from a room to a room."""
    return [_shift(jnp.ones((rows, columns), bool), move ^ 1) for move in range(NUM_MOVES)]


def _random_choice(bits: jax.Array, is_choice: list[jax.Array]) -> jax.Array:
    """A uniformly random move, uint8, among those allowed; bits: uint16. 3, if none is."""
    count = sum((allowed.astype(jnp.uint32) for allowed in is_choice), jnp.uint32(0))
    skip = (bits * count) >> 16  # of 0 to count - 1; probabilities are even to 1 in 65,536
    move, seen = jnp.zeros_like(count), jnp.zeros_like(count)
    for allowed in is_choice[:-1]:
        seen += allowed
        move += seen <= skip
    return move.astype(jnp.uint8)


def _passages(arrows: UInt8[Array, "R K"]) -> tuple[Bool[Array, "R K"], Bool[Array, "R K"]]:
    """Whether the walls to the east and to the south of each room are open, where each arrow opens a wall."""
    south = (arrows == 1) | _shift(arrows == 0, 0)
    east = (arrows == 3) | _shift(arrows == 2, 2)
    return east, south


def _grid(east: Bool[Array, "R K"], south: Bool[Array, "R K"]) -> Bool[Array, "H W"]:
    """The grid of cells with the rooms and the open walls between them."""
    rows, columns = east.shape
    # Interleaved by stacking: strided writes would become scatters.
    room_rows = jnp.stack([jnp.ones_like(east), east], axis=-1)
    wall_rows = jnp.stack([south, jnp.zeros_like(south)], axis=-1)
    cells = jnp.stack([room_rows, wall_rows], axis=1).reshape(2 * rows, 2 * columns)
    return jnp.pad(cells, ((1, 0), (1, 0)))


def _depth_first_arrows(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Depth-first search from a random room: each room's arrow leads to the room it was entered from."""
    start_key, bits_key = jax.random.split(key)
    stride = columns + 2
    offsets = jnp.array([row * stride + column for row, column in DIRECTIONS] + [0], jnp.int32)
    # A rim of visited rooms spares the test for the border.
    unvisited = jnp.pad(jnp.full((rows, columns), _UNVISITED, jnp.uint8), 1, constant_values=_ROOT).reshape(-1)
    room = jax.random.randint(start_key, (), 0, rows * columns)
    start = (room // columns + 1) * stride + room % columns + 1

    def step(carry: tuple[jax.Array, jax.Array], bits: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        arrows, here = carry
        nearby = arrows[here + offsets]
        is_new = [nearby[move] == _UNVISITED for move in range(NUM_MOVES)]
        is_forward = is_new[0] | is_new[1] | is_new[2] | is_new[3]
        move = jnp.where(is_forward, _random_choice(bits, is_new), nearby[NUM_MOVES])
        there = here + offsets[move]
        arrows = arrows.at[there].set(jnp.where(is_forward, move ^ 1, arrows[there]))
        return (arrows, there), None

    # Each room but the first is entered once and left once by going back, save those of the last way.
    bits = jax.random.bits(bits_key, (2 * rows * columns - 3,), jnp.uint16)
    (arrows, _), _ = jax.lax.scan(step, (unvisited.at[start].set(_ROOT), start), bits)
    return arrows.reshape(rows + 2, stride)[1:-1, 1:-1]


def _loop_erased_arrows(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Wilson's walks, one step of a walk or of its way into the tree at a time: arrows that lead to the root."""
    stride = columns + 2
    offsets = jnp.array([row * stride + column for row, column in DIRECTIONS], jnp.int32)
    first, last = stride + 1, rows * stride + columns
    # Any root serves; from the middle the others are near, and the walks short.
    root = (rows // 2 + 1) * stride + columns // 2 + 1
    loose = jnp.pad(jnp.zeros((rows, columns), jnp.uint8), 1, constant_values=_RIM).reshape(-1)

    def step(i: int | jax.Array, carry: tuple[_Walk, jax.Array]) -> tuple[_Walk, jax.Array]:
        walk, words = carry
        drawn = ((words[i // 16] >> jnp.uint32(2 * (i % 16))) & 3).astype(jnp.uint8)
        code = walk.codes[walk.here]
        there = walk.here + offsets[jnp.where(walk.is_walking, drawn, code & 3)]
        is_outside = walk.is_walking & (walk.codes[there] == _RIM)
        is_tree = code >= _IN_TREE
        # A walk that met the tree goes back to its start and adds its way, the last arrows it drew: loops are erased.
        is_met = is_tree & walk.is_walking & (walk.here != walk.start)
        start = jnp.where(is_tree & ~is_met, jnp.minimum(walk.start + 1, last + 1), walk.start)
        new_code = jnp.where(is_tree, code, jnp.where(walk.is_walking, drawn, code | _IN_TREE))
        walk = _Walk(
            codes=walk.codes.at[walk.here].set(new_code),
            here=jnp.where(is_tree, start, jnp.where(is_outside, walk.here, there)),
            start=start,
            is_walking=jnp.where(is_tree, ~is_met, walk.is_walking),
        )
        return walk, words

    def steps(carry: tuple[_Walk, jax.Array]) -> tuple[_Walk, jax.Array]:
        walk, i = carry
        words = jax.random.bits(jax.random.fold_in(key, i), (4,))
        walk, _ = jax.lax.fori_loop(0, 16 * len(words), step, (walk, words))
        return walk, i + 1

    start = jnp.array(first, jnp.int32)
    walk = _Walk(codes=loose.at[root].set(_IN_TREE | _ROOT), here=start, start=start, is_walking=jnp.array(True))
    walk, _ = jax.lax.while_loop(lambda carry: carry[0].start <= last, steps, (walk, jnp.array(0)))
    return (walk.codes & ~jnp.uint8(_IN_TREE)).reshape(rows + 2, stride)[1:-1, 1:-1]


def _minimum_tree(key: jax.Array, rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
    """East and south walls that Boruvka's rounds open, for weights in random order."""
    rooms = jnp.arange(rows * columns).reshape(rows, columns)
    ends = jnp.concatenate(
        [
            jnp.stack([rooms[:, :-1].reshape(-1), rooms[:, 1:].reshape(-1)]),
            jnp.stack([rooms[:-1].reshape(-1), rooms[1:].reshape(-1)]),
        ],
        axis=1,
    )
    num_edges = ends.shape[1]
    order = jax.random.permutation(key, num_edges)
    is_open = _boruvka(ends[:, order], rows * columns)
    is_open = jnp.zeros(num_edges, bool).at[order].set(is_open)
    east = is_open[: rows * (columns - 1)].reshape(rows, columns - 1)
    south = is_open[rows * (columns - 1) :].reshape(rows - 1, columns)
    return jnp.pad(east, ((0, 0), (0, 1))), jnp.pad(south, ((0, 1), (0, 0)))


def _boruvka(ends: Int[Array, "2 E"], num_nodes: int) -> Bool[Array, " E"]:
    """Edges of the minimum spanning tree, where an edge's weight is its place in `ends`."""
    num_edges = ends.shape[1]
    places = jnp.arange(num_edges)
    nodes = jnp.arange(num_nodes)

    def join(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        labels, is_open = carry
        components = labels[ends]
        weights = jnp.where(components[0] == components[1], num_edges, places)
        lightest = jnp.full(num_nodes, num_edges).at[components].min(weights[None])
        is_open = is_open.at[lightest].set(True, mode="drop")
        # Beyond the last edge: a component that is whole, or a node that labels none, stays where it is.
        others = components[:, jnp.minimum(lightest, num_edges - 1)].sum(axis=0) - nodes
        to = jnp.where(lightest < num_edges, others, nodes)
        # Two components that chose the same edge would chase each other.
        to = jnp.where((to[to] == nodes) & (nodes < to), nodes, to)
        for _ in range(math.ceil(math.log2(num_nodes))):
            to = to[to]
        return to[labels], is_open

    def is_split(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (carry[0] != carry[0][0]).any()

    _, is_open = jax.lax.while_loop(is_split, join, (nodes, jnp.zeros(num_edges, bool)))
    return is_open
