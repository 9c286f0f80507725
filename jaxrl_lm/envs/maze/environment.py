"""`Maze-v0`: find the path to the goal of a maze from a bank of levels.

The state of an episode is (level, position, time). A step reads one byte of the bank, draws no random numbers, and
writes three integers, so millions of steps per second are possible. `refresh` replaces levels between chunks of
updates, so that training sees new mazes.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Array, Int

from jaxrl_lm import checks
from jaxrl_lm.envs.bank import BankEnvironment, BankParams
from jaxrl_lm.envs.base import LevelPart, Pay
from jaxrl_lm.envs.maze import grid
from jaxrl_lm.envs.maze.held_out import count_distinct
from jaxrl_lm.envs.maze.levels import LevelSource
from jaxrl_lm.envs.maze.oracle import optimal_return, paid_return
from jaxrl_lm.envs.stepping import MaskedObservation
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

Observation = Literal["position", "grid", "window"]
Reward = Literal["article", "steps", "sparse", "shaped"]


@dataclass(frozen=True, kw_only=True)
class MazeConfig:
    """Observations, rewards and time limit of a maze environment.

    Attributes:
        observation: "position": the agent's cell, an integer. "grid": uint8 planes `[H, W, 3]` of walls, agent and
            goal. "window": the same planes `[k, k, 3]` around the agent; cells beyond the border are walls.
        reward: "article": -1 per step, +1 for the step that reaches the goal. "steps": -1 per step, 0 for that step.
            "sparse": 1 for that step, else 0. "shaped": sparse plus discount * P(next) - P(here) with the potential
            P = -distance to the goal / cells (Ng, Harada and Russell, 1999, Policy invariance under reward
            transformations).
        window_size: k, odd.
        max_steps: time limit of an episode; None for twice the number of cells.
        discount: gamma of the shaping term; must be the agent's.
        has_action_mask: add a mask of the legal moves to observations (a `MaskedObservation`).
    """

    observation: Observation = "position"
    reward: Reward = "article"
    window_size: int = 5
    max_steps: int | None = None
    discount: float = 0.99
    has_action_mask: bool = False

    def __post_init__(self) -> None:
        checks.one_of(self, observation=Observation, reward=Reward)
        if self.window_size < 3 or self.window_size % 2 == 0:
            raise InputError(f"window_size={self.window_size} must be odd and at least 3")
        checks.at_least(self, 1, "max_steps")
        checks.between(self, 0, 1, "discount")


@struct.dataclass
class MazeState(environment.EnvState):
    """State of an episode.

    Attributes:
        time: steps made, int32.
        level: row of the bank, int32.
        position: the agent's cell, int32.
    """

    time: PyTree
    level: PyTree = 0
    position: PyTree = 0


MazeParams = BankParams
"""Parameters whose bank is a `LevelBank`."""


class Maze(BankEnvironment):
    """Moves up, down, left and right through mazes; an illegal move leaves the agent where it is."""

    end_name = "solved"

    config: MazeConfig
    source: LevelSource

    @property
    def generates_levels(self) -> bool:
        """Not where the layout is drawn by hand."""
        return self.source.layout is None

    @property
    def blindness(self) -> str | None:
        """A position says nothing about the walls, so that the best move depends on what is not seen."""
        if self.config.observation != "position" or self.config.has_action_mask:
            return None
        return (
            "observation=position shows neither walls nor goal, so no policy can solve mazes that change; "
            "choose observation=grid or observation=window, or one maze: a layout such as layout=medium, or "
            "num_levels=1 without --refresh-levels"
        )

    def of_part(self, part: LevelPart, num_levels: int | None = None, *, trained: Any = None) -> "Maze":
        """The same environment with levels of one part; see `LevelSource`."""
        trained_on = None if trained is None else trained.source.generator
        num_levels = self.source.num_levels if num_levels is None else num_levels
        return Maze(self.config, replace(self.source, part=part, num_levels=num_levels, trained_on=trained_on))

    @property
    def max_steps(self) -> int:
        """Time limit of an episode."""
        return self.config.max_steps or 2 * self.num_cells

    def begin(self, level: Int[Array, "*B"], params: MazeParams) -> MazeState:
        """The starts of levels."""
        return MazeState(time=jnp.zeros_like(level), level=level, position=params.bank.starts[level])

    def count_levels(self, params: MazeParams) -> tuple[int, int]:
        """Different levels (walls, start and goal) of the bank, and different layouts (walls alone)."""
        return count_distinct(params.bank)

    def optimal_returns(self, params: MazeParams, discount: float | jax.Array, pay: Pay | None = None) -> jax.Array:
        """The return of a shortest path through every level of the bank, `[L]`."""
        bank = params.bank
        distances = jnp.take_along_axis(bank.distances, bank.starts[:, None], axis=1)[:, 0]
        reward, num_cells = self.config.reward, self.num_cells
        if pay is None:
            return optimal_return(distances, discount=discount, reward=reward, num_cells=num_cells)
        return paid_return(distances, pay, discount=discount, reward=reward, num_cells=num_cells)

    @property
    def name(self) -> str:
        """Its id."""
        return "Maze-v0"

    @property
    def num_actions(self) -> int:
        """Up, down, left, right."""
        return grid.NUM_MOVES

    @property
    def num_cells(self) -> int:
        """Cells of the grid, walls included."""
        return self.source.height * self.source.width

    def transition(self, state: MazeState, action: jax.Array, params: MazeParams) -> tuple[MazeState, jax.Array]:
        """One move and its reward."""
        bank = params.bank
        here = state.position
        position = grid.apply_move(here, action, bank.moves[state.level, here], self.source.width)
        new = MazeState(time=state.time + 1, level=state.level, position=position)
        return new, self._reward(state, new, params)

    def is_terminated(self, state: MazeState, params: MazeParams) -> jax.Array:
        """Whether the agent is at the goal."""
        return state.position == params.bank.goals[state.level]

    def observation(self, state: MazeState, params: MazeParams) -> Any:
        """What the configuration shows."""
        moves = params.bank.moves[state.level]
        if self.config.observation == "position":
            shown = state.position
        elif self.config.observation == "grid":
            shown = self._planes(moves, jnp.arange(self.num_cells), state, params)
            shown = shown.reshape(self.source.height, self.source.width, 3)
        else:
            shown = self._window(moves, state, params)
        if not self.config.has_action_mask:
            return shown
        mask = (moves[state.position] >> jnp.arange(grid.NUM_MOVES, dtype=jnp.uint8)) & 1
        return MaskedObservation(observation=shown, action_mask=mask > 0)

    def action_space(self, params: MazeParams | None = None) -> spaces.Discrete:
        """Four moves."""
        del params
        return spaces.Discrete(grid.NUM_MOVES)

    def observation_space(self, params: MazeParams | None = None) -> spaces.Space:
        """A cell, or planes of 0 and 1; with an action mask, that of the observation itself."""
        del params
        if self.config.observation == "position":
            return spaces.Discrete(self.num_cells)
        height, width = self.source.height, self.source.width
        if self.config.observation == "window":
            height = width = self.config.window_size
        return spaces.Box(0, 1, (height, width, 3), jnp.uint8)

    def state_space(self, params: MazeParams) -> spaces.Dict:
        """Level, position and time."""
        return spaces.Dict(
            {
                "level": spaces.Discrete(params.bank.num_levels),
                "position": spaces.Discrete(self.num_cells),
                "time": spaces.Discrete(int(params.max_steps_in_episode) + 1),
            }
        )

    def _reward(self, old: MazeState, new: MazeState, params: MazeParams) -> jax.Array:
        is_goal = self.is_terminated(new, params)
        if self.config.reward == "article":
            return jnp.where(is_goal, 1.0, -1.0)
        if self.config.reward == "steps":
            return jnp.where(is_goal, 0.0, -1.0)
        sparse = is_goal.astype(jnp.float32)
        if self.config.reward == "sparse":
            return sparse
        here, there = (
            params.bank.distances[state.level, state.position].astype(jnp.float32) / self.num_cells
            for state in (old, new)
        )
        return sparse + here - self.config.discount * there

    def _planes(self, moves: jax.Array, cells: jax.Array, state: MazeState, params: MazeParams) -> jax.Array:
        """Wall, agent and goal at each of `cells`, uint8 `[..., 3]`."""
        goal = params.bank.goals[state.level]
        planes = [moves[cells] == 0, cells == state.position, cells == goal]
        return jnp.stack(planes, axis=-1).astype(jnp.uint8)

    def _window(self, moves: jax.Array, state: MazeState, params: MazeParams) -> jax.Array:
        reach = self.config.window_size // 2
        row, column = grid.as_cells(state.position, self.source.width)
        rows = row + jnp.arange(-reach, reach + 1)[:, None]
        columns = column + jnp.arange(-reach, reach + 1)[None, :]
        is_inside = (rows >= 0) & (rows < self.source.height) & (columns >= 0) & (columns < self.source.width)
        planes = self._planes(moves, jnp.where(is_inside, rows * self.source.width + columns, 0), state, params)
        beyond = jnp.array([1, 0, 0], jnp.uint8)
        return jnp.where(is_inside[..., None], planes, beyond)
