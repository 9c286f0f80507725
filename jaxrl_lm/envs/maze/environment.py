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

from jaxrl_lm import checks
from jaxrl_lm.envs.base import LevelEnvironment, LevelPart, Pay
from jaxrl_lm.envs.maze import grid
from jaxrl_lm.envs.maze.grid import LevelBank
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


@struct.dataclass
class MazeParams(environment.EnvParams):
    """What episodes are drawn from.

    Attributes:
        max_steps_in_episode: time limit.
        bank: the levels.
        first_level: of those that new episodes are drawn from, int32.
        num_drawn: how many they are, int32.
    """

    max_steps_in_episode: PyTree = 1
    # gymnax's own field has a default, so these need one.
    bank: LevelBank = struct.field(default=None)  # pyright: ignore[reportAssignmentType]
    first_level: PyTree = 0
    num_drawn: PyTree = 1


class Maze(LevelEnvironment):
    """Moves up, down, left and right through mazes; an illegal move leaves the agent where it is."""

    end_name = "solved"

    def __init__(self, config: MazeConfig, source: LevelSource) -> None:
        self.config = config
        self.source = source
        self._default_params: MazeParams | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Maze) and (self.config, self.source) == (other.config, other.source)

    def __hash__(self) -> int:
        return hash((self.config, self.source))

    @property
    def generates_levels(self) -> bool:
        """Not where the layout is drawn by hand."""
        return self.source.layout is None

    @property
    def num_levels(self) -> int:
        """The source's number; where a layout is drawn by hand, its starts."""
        return self.source.num_levels

    @property
    def level_seed(self) -> int:
        """The source's seed."""
        return self.source.seed

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

    def new_params(self, key: jax.Array) -> MazeParams:
        """Levels from the environment's source; jit it. A fixed layout gives the same levels whatever the key."""
        bank = self.source.make_bank(key)
        return MazeParams(
            max_steps_in_episode=jnp.asarray(self.config.max_steps or 2 * self.num_cells, jnp.int32),
            bank=bank,
            first_level=jnp.zeros((), jnp.int32),
            num_drawn=jnp.asarray(bank.num_levels, jnp.int32),
        )

    def refresh(self, params: MazeParams, key: jax.Array) -> MazeParams:
        """Fresh levels for the episodes to come; jit it.

        Running episodes keep their levels: the bank has two halves, the inactive one is replaced and becomes active.
        Call this at most every `max_steps_in_episode` steps, so that no episode is left in the half that is replaced.
        The first call doubles the bank.
        """
        fresh = self.source.make_bank(key)
        half = fresh.num_levels
        if params.bank.num_levels == half:
            bank = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), params.bank, fresh)
            return params.replace(bank=bank, first_level=jnp.asarray(half, jnp.int32))  # pyright: ignore[reportAttributeAccessIssue]
        first = half - params.first_level
        bank = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, first, axis=0), params.bank, fresh
        )
        return params.replace(bank=bank, first_level=first)  # pyright: ignore[reportAttributeAccessIssue]

    def current_levels(self, params: MazeParams, key: jax.Array, num_levels: int) -> MazeParams:
        """Levels that new episodes are drawn from, each of them once before any comes again."""
        order = jax.random.permutation(key, params.bank.num_levels)
        is_current = (order >= params.first_level) & (order < params.first_level + params.num_drawn)
        rows = order[jnp.argsort(~is_current)[jnp.arange(num_levels) % params.num_drawn]]
        return MazeParams(
            max_steps_in_episode=params.max_steps_in_episode,
            bank=jax.tree.map(lambda leaf: leaf[rows], params.bank),
            first_level=jnp.zeros((), jnp.int32),
            num_drawn=jnp.asarray(num_levels, jnp.int32),
        )

    def level_resets(self, params: MazeParams) -> tuple[Any, MazeState]:
        """An episode at the start of every level of the bank: for an evaluation that leaves none out."""
        level = jnp.arange(params.bank.num_levels, dtype=jnp.int32)
        states = MazeState(time=jnp.zeros_like(level), level=level, position=params.bank.starts)
        return jax.vmap(self.observation, (0, None))(states, params), states

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
    def default_params(self) -> MazeParams:
        """Levels of the source's own seed; generated once, since gymnax asks at every step that is given none."""
        kept = self._default_params
        if kept is None or kept.bank.moves.is_deleted():
            # A step may be traced when it asks; levels that are kept must not be tracers.
            with jax.ensure_compile_time_eval():
                kept = self._default_params = _new_params(self, jax.random.key(self.source.seed))
        return kept

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

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: MazeParams) -> MazeState:
        """Starts of levels drawn uniformly."""
        level = params.first_level + jax.random.randint(key, shape, 0, params.num_drawn, jnp.int32)
        return MazeState(time=jnp.zeros(shape, jnp.int32), level=level, position=params.bank.starts[level])

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


# Compiled once for all environments with the same settings.
_new_params = jax.jit(Maze.new_params, static_argnums=0)
