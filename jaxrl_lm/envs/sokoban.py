"""`Sokoban-v0`: push the box onto the target, in rooms from a bank.

gym-sokoban's game with one box, as RAGEN plays it (Wang et al., 2025, RAGEN: Understanding Self-Evolution in LLM Agents
via Multi-Turn Reinforcement Learning). A cell is numbered row by row.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Array, Int, UInt8

from jaxrl_lm import checks
from jaxrl_lm.envs.bank import BankEnvironment, BankParams
from jaxrl_lm.envs.base import LevelPart, Pay
from jaxrl_lm.envs.sokoban_levels import DIRECTIONS, MOVES, NUM_BOXES, SokobanLevels
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

STEP_REWARD = -0.1
"""Of every move."""

TARGET_REWARD = 1.0
"""Added when a box gets onto a target, subtracted when it leaves one; a game of one box is over before it can."""

SOLVED_REWARD = 10.0
"""Added when all boxes are on targets, which ends the episode."""


@dataclass(frozen=True, kw_only=True)
class SokobanConfig:
    """Time limit.

    Attributes:
        max_steps: time limit of an episode.
    """

    max_steps: int = 10

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "max_steps")


@struct.dataclass
class SokobanState(environment.EnvState):
    """State of an episode.

    Attributes:
        time: steps made, int32.
        level: row of the bank, int32.
        player: the player's cell, int32.
        box: the box's cell, int32.
    """

    time: PyTree
    level: PyTree = 0
    player: PyTree = 0
    box: PyTree = 0


class Sokoban(BankEnvironment):
    """Moves up, down, left and right; a move against the box pushes it if the cell behind is free.

    A move against a wall, or against a box that is not free to go, leaves everything where it is. The episode ends when
    the box is on the target.
    """

    end_name = "solved"

    config: SokobanConfig
    source: SokobanLevels

    @property
    def name(self) -> str:
        """Its id."""
        return "Sokoban-v0"

    @property
    def num_actions(self) -> int:
        """Up, down, left, right."""
        return len(MOVES)

    @property
    def max_steps(self) -> int:
        """Time limit of an episode."""
        return self.config.max_steps

    def of_part(self, part: LevelPart, num_levels: int | None = None, *, trained: Any = None) -> "Sokoban":
        """The same environment with rooms of one part; see `DrawnLevels`."""
        # Rooms of another size are different from those of the training whatever their hash.
        is_comparable = isinstance(trained, Sokoban) and trained.source.size == self.source.size
        trained_on = trained.source if is_comparable else None
        num_levels = self.source.num_levels if num_levels is None else num_levels
        return Sokoban(self.config, replace(self.source, part=part, num_levels=num_levels, trained_on=trained_on))

    def begin(self, level: Int[Array, "*B"], params: BankParams) -> SokobanState:
        """The starts of levels."""
        bank = params.bank
        return SokobanState(time=jnp.zeros_like(level), level=level, player=bank.players[level], box=bank.boxes[level])

    def transition(self, state: SokobanState, action: jax.Array, params: BankParams) -> tuple[SokobanState, jax.Array]:
        """One move and its reward."""
        size, walls = self.source.size, params.bank.walls
        offset = jnp.array([down * size + right for down, right in DIRECTIONS], jnp.int32)[action]
        ahead = state.player + offset
        is_push = ahead == state.box
        # Where a box is pushed, the cell behind it is in the grid, since the border is wall.
        is_legal = (walls[state.level, ahead] == 0) & ~(is_push & (walls[state.level, ahead + offset] > 0))
        new = SokobanState(
            time=state.time + 1,
            level=state.level,
            player=jnp.where(is_legal, ahead, state.player),
            box=jnp.where(is_legal & is_push, ahead + offset, state.box),
        )
        return new, _reward(self.is_terminated(new, params))

    def is_terminated(self, state: SokobanState, params: BankParams) -> jax.Array:
        """Whether the box is on the target."""
        return state.box == params.bank.targets[state.level]

    def observation(self, state: SokobanState, params: BankParams) -> UInt8[Array, "H W 4"]:
        """Planes of walls, player, box and target."""
        size = self.source.size
        cells = jnp.arange(size**2)
        target = params.bank.targets[state.level]
        planes = (params.bank.walls[state.level], cells == state.player, cells == state.box, cells == target)
        return jnp.stack([plane.astype(jnp.uint8) for plane in planes], axis=-1).reshape(size, size, 4)

    def optimal_returns(self, params: BankParams, discount: float | jax.Array, pay: Pay | None = None) -> jax.Array:
        """The return of a shortest solution of every level of the bank, `[L]`.

        return(d) = r + discount * return(d - 1),  return(0) = 0

        Here r is -0.1, and 10.9 for the move that solves. Levels without a solution within the time limit have the
        return of as many moves that solve nothing.
        """
        pay = pay or (lambda reward: reward)
        on_the_way, at_the_end = pay(_reward(jnp.array(False))), pay(_reward(jnp.array(True)))
        solutions, num_steps = params.bank.solutions, params.max_steps_in_episode

        def longer(d: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            solved, unsolved, found = carry
            solved = jnp.where(d == 1, at_the_end, on_the_way + discount * solved)
            return solved, on_the_way + discount * unsolved, jnp.where(solutions == d, solved, found)

        zero = jnp.zeros((), jnp.float32)
        start = (zero, zero, jnp.zeros(solutions.shape, jnp.float32))
        _, unsolved, found = jax.lax.fori_loop(1, num_steps + 1, longer, start)
        return jnp.where(solutions <= num_steps, found, unsolved)

    def count_levels(self, params: BankParams) -> tuple[int, int]:
        """Different levels of the bank, and different layouts (walls alone)."""
        bank = params.bank
        layouts = [row.tobytes() for row in np.asarray(bank.walls)]
        cells = np.stack([np.asarray(cells) for cells in (bank.targets, bank.players, bank.boxes)], axis=1)
        return len({(layout, *row) for layout, row in zip(layouts, cells.tolist(), strict=True)}), len(set(layouts))

    def action_space(self, params: BankParams | None = None) -> spaces.Discrete:
        """Four moves."""
        del params
        return spaces.Discrete(len(MOVES))

    def observation_space(self, params: BankParams | None = None) -> spaces.Box:
        """Planes of 0 and 1."""
        del params
        return spaces.Box(0, 1, (self.source.size, self.source.size, 4), jnp.uint8)


def make_sokoban(
    *,
    size: int = 6,
    num_boxes: int = NUM_BOXES,
    num_levels: int = 4096,
    seed: int = 0,
    max_steps: int = 10,
    min_solution: int = 1,
    max_solution: int | None = None,
) -> Sokoban:
    """A game of Sokoban; options are those of `SokobanLevels` and `SokobanConfig`.

    Args:
        size: rows and columns with the border.
        num_boxes: boxes of a level; 1.
        num_levels: levels of a bank.
        seed: of the bank that an environment begins with.
        max_steps: time limit of an episode.
        min_solution: fewest moves of a shortest solution.
        max_solution: most moves of a shortest solution; None for `max_steps`.

    Raises:
        InputError: an option does not fit, or levels might not be solved within the time limit.
    """
    config = SokobanConfig(max_steps=max_steps)
    if max_solution is not None and max_solution > max_steps:
        raise InputError(f"max_solution={max_solution} must be at most max_steps={max_steps}, or no episode can end so")
    levels = SokobanLevels(
        size=size,
        num_boxes=num_boxes,
        num_levels=num_levels,
        seed=seed,
        min_solution=min_solution,
        max_solution=max_steps if max_solution is None else max_solution,
    )
    return Sokoban(config, levels)


def draw(
    walls: UInt8[np.ndarray, " C"], *, player: int | np.integer, box: int | np.integer, target: int | np.integer
) -> list[str]:
    """The rows of a level in RAGEN's signs.

    `#` wall, `_` floor, `O` target, `X` box, `P` player, `√` box on target, `S` player on target.

    Args:
        walls: 1 where a wall is, of a square room, row by row.
        player: the player's cell.
        box: the box's cell.
        target: the target's cell.
    """
    size = round(len(walls) ** 0.5)
    signs = np.where(walls > 0, "#", "_")
    signs[target] = "O"
    signs[box] = "√" if box == target else "X"
    signs[player] = "S" if player == target else "P"
    return ["".join(row) for row in signs.reshape(size, size)]


def _reward(is_solved: jax.Array) -> jax.Array:
    return jnp.where(is_solved, STEP_REWARD + TARGET_REWARD + SOLVED_REWARD, STEP_REWARD).astype(jnp.float32)
