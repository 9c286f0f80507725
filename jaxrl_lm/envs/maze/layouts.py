"""Mazes drawn by hand: `#` wall, `.` free, `S` start (each is a level), `G` goal; beyond the border all is wall."""

from difflib import get_close_matches

import numpy as np

from jaxrl_lm.envs.maze.grid import DIRECTIONS
from jaxrl_lm.errors import InputError

WALL, FREE, START, GOAL = "#.SG"

# Fu et al., 2020, D4RL: an episode begins at any free cell.
_UMAZE = """
#####
#GSS#
###S#
#SSS#
#####
"""
_MEDIUM = """
########
#SS##SS#
#SS#SSS#
##SSS###
#SS#SSS#
#S#SS#S#
#SSS#SG#
########
"""
_LARGE = """
############
#SSSS#SSSSS#
#S##S#S#S#S#
#SSSSSS#SSS#
#S####S###S#
#SS#S#SSSSS#
##S#S#S#S###
#SS#SSS#SGS#
############
"""
# Abdulhai et al., 2023, LMRL-Gym: 25 starts, every free cell but the goal.
_DOUBLE_T = """
#############
#SSSSS#SSSSS#
###S#####S###
###S#####S###
###S#####S###
###SSSSSSS###
######S######
######S######
######G######
#############
"""
# Dennis et al., 2020, Emergent complexity and zero-shot transfer via unsupervised environment design; the test mazes
# of minimax and JaxUED, as JaxUED draws them.
_SIXTEEN_ROOMS = """
...#..#..#...
.S.......#...
...#..#......
#.###.##.###.
...#.........
......#..#...
##.#.##.###.#
...#.....#...
...#..#......
.####.##.#.##
...#..#..#...
......#....G.
...#.....#...
"""
_LABYRINTH = """
.............
.###########.
.#.........#.
.#.#######.#.
.#.#.....#.#.
.#.#.###.#.#.
.#.#.#G#.#.#.
.#.#.#.#.#.#.
.#...#...#.#.
.#########.#.
.....#.....#.
####.#.#####.
S....#.......
"""
_STANDARD_MAZE = """
.....#S...#..
.###.####.##.
.#...........
.########.###
........#....
######.#####.
....#..#.....
.##...##.####
..#.#..#...#.
#.#.##.###.#.
#.#..#...#...
#.##.###.###.
...#..G#.#...
"""

LAYOUTS: dict[str, str] = {
    "umaze": _UMAZE,
    "medium": _MEDIUM,
    "large": _LARGE,
    "double-t": _DOUBLE_T,
    "sixteen-rooms": _SIXTEEN_ROOMS,
    "labyrinth": _LABYRINTH,
    "standard-maze": _STANDARD_MAZE,
}
"""Every layout by its name."""


def layout_rows(layout: str) -> list[str]:
    """The rows of a layout, checked.

    Args:
        layout: a name in `LAYOUTS`, or the drawing itself; blank lines around it and spaces around rows do not count.

    Raises:
        InputError: unknown name, unknown characters, ragged rows, no start, not exactly one goal, or a start
            without a path to the goal.
    """
    drawing = _drawing(layout)
    rows = [row.strip() for row in drawing.strip().splitlines()]
    for number, row in enumerate(rows, 1):
        unknown = set(row) - {WALL, FREE, START, GOAL}
        if unknown:
            raise InputError(f"layout: row {number}, {row!r}, has {_quoted(unknown)}; draw with # . S G alone")
        if len(row) != len(rows[0]):
            raise InputError(
                f"layout: row {number}, {row!r}, has {len(row)} cells and row 1 has {len(rows[0])}; make all as long"
            )
    _check_marks(rows)
    return rows


def _drawing(layout: str) -> str:
    # A drawing of one row has no line end; no name is made of the drawing's characters alone.
    if "\n" in layout or not set(layout) - {WALL, FREE, START, GOAL, " "}:
        return layout
    if layout in LAYOUTS:
        return LAYOUTS[layout]
    near = get_close_matches(layout.lower(), LAYOUTS, n=3, cutoff=0.5)
    raise InputError(
        f"layout={layout!r} is not a layout; {'did you mean' if near else 'there are'}: "
        f"{', '.join(near or LAYOUTS)}, or draw one with # . S G, one line per row"
    )


def _check_marks(rows: list[str]) -> None:
    cells = np.array([list(row) for row in rows])
    if not (cells == START).any():
        raise InputError("layout has no start; mark each cell where an episode may begin with S")
    num_goals = int((cells == GOAL).sum())
    if num_goals != 1:
        raise InputError(f"layout has {num_goals} goals; mark exactly one cell with G")
    sealed = np.argwhere((cells == START) & ~_reachable(cells != WALL, cells == GOAL))
    if len(sealed):
        row, column = sealed[0]
        raise InputError(
            f"layout: there is no path to the goal from the start at row {row + 1}, column {column + 1}; "
            "open a wall between them"
        )


def _reachable(is_open: np.ndarray, begin: np.ndarray) -> np.ndarray:
    height, width = is_open.shape
    reached, old = begin, np.zeros_like(begin)
    while (reached != old).any():
        old, padded = reached, np.pad(reached, 1)
        for rows, columns in DIRECTIONS:
            reached = reached | padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
        reached = reached & is_open
    return reached


def _quoted(characters: set[str]) -> str:
    return ", ".join(repr(character) for character in sorted(characters))
