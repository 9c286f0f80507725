"""Sources of levels: a generator with sizes and a seed, or a layout drawn by hand."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from jaxrl_lm.envs.bank import keep_levels
from jaxrl_lm.envs.base import LevelPart
from jaxrl_lm.envs.maze.generators import GENERATORS
from jaxrl_lm.envs.maze.grid import UNREACHABLE, LevelBank, legal_moves
from jaxrl_lm.envs.maze.held_out import Split, is_held_out, split_levels
from jaxrl_lm.envs.maze.layouts import GOAL, START, WALL, layout_rows
from jaxrl_lm.envs.maze.oracle import distances_to_goal
from jaxrl_lm.envs.memory import available_bytes, check_bank
from jaxrl_lm.errors import InputError

# A cell of the bank takes 1 byte of moves and 2 of distance. XLA's own account of the compiled program, bank and
# temporaries together, is 5 times that (backtracker) to 11 times (kruskal).
_BYTES_PER_CELL = 3
_COPIES_WHILE_MADE = 11
_SPARE = {"training": 1.1, "held-out": 1.5}  # how many more levels are drawn than are needed on average


@dataclass(frozen=True, kw_only=True)
class LevelSource:
    """Source of a bank of levels; start and goal of a generated level are two random cells with a path between them.

    Attributes:
        generator: a name in `GENERATORS`.
        height: rows of the grid, odd, at least 5; with a layout, those of the layout whatever is given.
        width: columns, likewise.
        num_levels: levels of a bank; with a layout, its starts whatever is given.
        seed: of the bank that an environment begins with.
        layout: a name in `LAYOUTS`, or a drawing; each of its starts is a level. None for generated levels.
        part: "training" leaves out the mazes that "held-out" draws from, about an eighth of all: see `held_out.py`.
        trained_on: generator of the training levels that held-out levels must differ from; None for the same one.
    """

    generator: str = "backtracker"
    height: int = 13
    width: int = 13
    num_levels: int = 4096
    seed: int = 0
    layout: str | None = None
    part: LevelPart = "all"
    trained_on: str | None = None

    def __post_init__(self) -> None:
        if self.generator not in GENERATORS:
            raise InputError(_unknown_generator(self.generator))
        if self.layout is not None:
            rows = layout_rows(self.layout)
            shape = {"height": len(rows), "width": len(rows[0]), "num_levels": sum(row.count(START) for row in rows)}
            for name, value in shape.items():
                object.__setattr__(self, name, value)
        else:
            _check_size("height", self.height)
            _check_size("width", self.width)
        if self.height * self.width > UNREACHABLE:
            raise InputError(
                f"height={self.height} times width={self.width} is {self.height * self.width} cells; "
                f"distances are kept in 16 bits: at most {UNREACHABLE} cells, such as 255x255"
            )
        if self.num_levels < 1:
            raise InputError(f"num_levels={self.num_levels} must be at least 1")

    def make_bank(self, key: Key[Array, ""]) -> LevelBank:
        """The levels of a key; those of a layout are the same for every key. Pure; jit it.

        Args:
            key: consumed.

        Raises:
            InputError: the bank does not fit into memory.
        """
        self._check_memory()
        if self.layout is not None:
            return _bank_of_layout(layout_rows(self.layout))
        bank = self._generate(key, self._num_drawn())
        if self.part == "all":
            return bank
        is_kept = is_held_out(bank, self._split()) == (self.part == "held-out")
        return keep_levels(bank, is_kept, self.num_levels)

    def _split(self) -> Split:
        return split_levels(self.generator, self.height, self.width, trained_on=self.trained_on)

    def _num_drawn(self) -> int:
        """Levels that are generated so that enough of the part are among them."""
        if self.part == "all" or self.layout is not None:
            return self.num_levels
        held_out = self._split().share
        share = held_out if self.part == "held-out" else 1 - held_out
        return int(self.num_levels * _SPARE[self.part] / share) + 128

    def _generate(self, key: jax.Array, num_levels: int) -> LevelBank:
        generate = GENERATORS[self.generator]
        maze_key, goal_key, start_key = jax.random.split(key, 3)

        def level_keys(key: jax.Array) -> jax.Array:
            return jax.random.split(key, num_levels)

        is_open = jax.vmap(lambda key: generate(key, self.height, self.width))(level_keys(maze_key))
        moves = jax.vmap(legal_moves)(is_open)
        # A goal that has a neighbour can be reached from somewhere, so there is a start.
        goals = jax.vmap(_random_cell)(level_keys(goal_key), moves > 0)
        distances = distances_to_goal(moves, goals, self.width)
        starts = jax.vmap(_random_cell)(level_keys(start_key), (distances > 0) & (distances < UNREACHABLE))
        return LevelBank(moves=moves, starts=starts, goals=goals, distances=distances)

    def _check_memory(self) -> None:
        bytes_per_level = self.height * self.width * _BYTES_PER_CELL
        part = "" if self.part == "all" else f" {self.part} levels"
        check_bank(
            self.num_levels,
            num_drawn=self._num_drawn(),
            bytes_kept=bytes_per_level,
            bytes_while_made=bytes_per_level * _COPIES_WHILE_MADE,
            available=available_bytes(),
            what=f"{part} of {self.height}x{self.width} cells",
        )


def source_from_options(
    size: int | None = None,
    generator: str | None = None,
    num_levels: int | None = None,
    seed: int = 0,
    layout: str | None = None,
) -> LevelSource:
    """Square levels, or a layout; the options of `Maze-v0`.

    Args:
        size: rows and columns of generated levels, odd, at least 5; None for 13.
        generator: a name in `GENERATORS`; None for "backtracker".
        num_levels: generated levels of a bank; None for 4,096.
        seed: of the bank that an environment begins with.
        layout: a name in `LAYOUTS`, or a drawing, in place of generated levels.

    Raises:
        InputError: one of them is invalid, or is given together with a layout, which has its own.
    """
    options = {"size": size, "generator": generator, "num_levels": num_levels}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if layout is not None:
        for name, value in given.items():
            raise InputError(f"{name}={value} does not go with a layout, whose levels are drawn by hand; leave it out")
        return LevelSource(seed=seed, layout=layout)
    if size is not None:
        _check_size("size", size)
        given |= {"height": given["size"], "width": given.pop("size")}
    return LevelSource(seed=seed, **given)


def _random_cell(key: Key[Array, ""], is_choice: Bool[Array, " C"]) -> Int[Array, ""]:
    """A uniformly random cell among those allowed."""
    place = jnp.cumsum(is_choice)
    return jnp.argmax(place > jax.random.randint(key, (), 0, place[-1])).astype(jnp.int32)


def _bank_of_layout(rows: list[str]) -> LevelBank:
    cells = np.array([list(row) for row in rows])
    starts = jnp.asarray(np.flatnonzero(cells == START), jnp.int32)
    goal = jnp.asarray(np.flatnonzero(cells == GOAL)[0], jnp.int32)
    moves = legal_moves(jnp.asarray(cells != WALL))
    distances = distances_to_goal(moves, goal, cells.shape[1])
    num_levels = len(starts)
    return LevelBank(
        moves=jnp.tile(moves, (num_levels, 1)),
        starts=starts,
        goals=jnp.tile(goal, num_levels),
        distances=jnp.tile(distances, (num_levels, 1)),
    )


def _check_size(name: str, size: int) -> None:
    if size < 5 or size % 2 == 0:
        nearest = max(5, size + 1 if size % 2 == 0 else size)
        raise InputError(f"{name}={size} must be odd and at least 5, such as {nearest}: walls are between open cells")


def _unknown_generator(name: str) -> str:
    near = get_close_matches(name.lower(), GENERATORS, n=3, cutoff=0.5)
    return (
        f"generator={name!r} is not a generator; {'did you mean' if near else 'there are'}: "
        f"{', '.join(near or GENERATORS)}"
    )
