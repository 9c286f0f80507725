"""`FrozenLake-v0`: cross a frozen lake to the goal without falling into a hole, on maps from a bank.

gymnasium's game on random maps, as RAGEN plays it (Wang et al., 2025, RAGEN: Understanding Self-Evolution in LLM Agents
via Multi-Turn Reinforcement Learning). A cell is numbered row by row.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxrl_lm import checks
from jaxrl_lm.envs.bank import BankEnvironment, BankParams, draw_levels
from jaxrl_lm.envs.base import LevelPart, Pay
from jaxrl_lm.envs.drawn_levels import Draw, DrawnLevels
from jaxrl_lm.envs.maze.grid import UNREACHABLE, legal_moves
from jaxrl_lm.envs.maze.oracle import distances_to_goal
from jaxrl_lm.envs.splitting import hash_layouts, mix
from jaxrl_lm.types import PyTree

Observation = Literal["position", "grid"]

MOVES = ("left", "down", "right", "up")
"""The actions in their order, gymnasium's; the neighbours of an action in this circle are perpendicular to it."""

_DIRECTIONS = ((0, -1), (1, 0), (0, 1), (-1, 0))  # (rows, columns)
_SEED_STEP = 0x9E3779B9  # odd, so that a seed comes again after 2^32 steps only


@dataclass(frozen=True, kw_only=True)
class FrozenLakeConfig:
    """Observation, ice and time limit.

    Attributes:
        observation: "position": the agent's cell, an integer. "grid": uint8 planes `[H, W, 3]` of holes, agent and
            goal.
        is_slippery: each move is the chosen one, or one of the two perpendicular to it, with probability 1/3 each.
        max_steps: time limit of an episode.
    """

    observation: Observation = "position"
    is_slippery: bool = False
    max_steps: int = 10

    def __post_init__(self) -> None:
        checks.one_of(self, observation=Observation)
        checks.at_least(self, 1, "max_steps")


@struct.dataclass(kw_only=True)
class LakeBank:
    """Maps of one size; S is cell 0 and G is the last one.

    Attributes:
        holes: 1 where a hole is, uint8 `[L, C]`.
        slip_seeds: where the slips of an evaluation in a level begin, uint32 `[L]`.
    """

    holes: PyTree
    slip_seeds: PyTree


@dataclass(frozen=True, kw_only=True)
class FrozenLakeLevels(DrawnLevels):
    """Maps as gymnasium's `generate_random_map` draws them; those without a path from start to goal are left out.

    Attributes:
        size: rows and columns, at least 2.
        frozen_probability: that a cell other than start and goal is frozen; else it is a hole.
    """

    size: int = 4
    frozen_probability: float = 0.9

    remedy: ClassVar[str] = "change frozen_probability"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.between(self, 2, 255, "size")
        checks.above(self, 0, "frozen_probability")
        checks.between(self, 0, 1, "frozen_probability")

    def draw(self, key: jax.Array, num_levels: int) -> Draw:
        """Maps with and without a path; the part of a map is decided by its holes."""
        hole_key, slip_key = jax.random.split(key)
        is_frozen = jax.random.uniform(hole_key, (num_levels, self.num_cells), jnp.float32) < self.frozen_probability
        is_frozen = is_frozen.at[:, jnp.array([0, -1])].set(True)
        moves = jax.vmap(legal_moves)(is_frozen.reshape(num_levels, self.size, self.size))
        distances = distances_to_goal(moves, jnp.full(num_levels, self.num_cells - 1, jnp.int32), self.size)
        slip_seeds = jax.random.bits(slip_key, (num_levels,), jnp.uint32)
        # Not the holes: the map without any, a quarter of those of 4x4, would have the hash 0 and be held out alone.
        bank = LakeBank(holes=(~is_frozen).astype(jnp.uint8), slip_seeds=slip_seeds)
        return Draw(bank, distances[:, 0] < UNREACHABLE, hash_layouts(is_frozen.astype(jnp.uint8)))

    @property
    def num_cells(self) -> int:
        """Cells of the grid."""
        return self.size**2

    @property
    def bytes_kept(self) -> int:
        """Holes and a seed."""
        return self.num_cells + 4

    @property
    def bytes_while_made(self) -> int:
        """As XLA counts the compiled program."""
        return 24 * self.num_cells + 16

    @property
    def description(self) -> str:
        """What the levels are."""
        return f"lakes of {self.size}x{self.size} cells with frozen_probability={self.frozen_probability}"


@struct.dataclass
class FrozenLakeState(environment.EnvState):
    """State of an episode.

    Attributes:
        time: steps made, int32.
        level: row of the bank, int32.
        position: the agent's cell, int32.
        seed: decides about the next slip, uint32.
    """

    time: PyTree
    level: PyTree = 0
    position: PyTree = 0
    seed: PyTree = 0


class FrozenLake(BankEnvironment):
    """Reward 1 for the step that reaches the goal, else 0; a hole ends the episode as the goal does.

    So a return is 1 for a success and 0 otherwise: the mean undiscounted return is the success rate, and the metric
    "ended" counts falls as well. A move across the border leaves the agent where it is.
    """

    end_name = "ended"

    config: FrozenLakeConfig
    source: FrozenLakeLevels

    @property
    def name(self) -> str:
        """Its id."""
        return "FrozenLake-v0"

    @property
    def num_actions(self) -> int:
        """Left, down, right, up."""
        return len(MOVES)

    @property
    def max_steps(self) -> int:
        """Time limit of an episode."""
        return self.config.max_steps

    @property
    def generates_levels(self) -> bool:
        """Not without holes, where there is only one map."""
        return self.source.frozen_probability < 1

    @property
    def blindness(self) -> str | None:
        """A position says nothing about the holes, so that the best move depends on what is not seen."""
        if self.config.observation != "position":
            return None
        return (
            "observation=position does not show the holes, so no policy can cross lakes that change; "
            "choose observation=grid, or one lake: num_levels=1 with --no-refresh-levels"
        )

    def of_part(self, part: LevelPart, num_levels: int | None = None, *, trained: Any = None) -> "FrozenLake":
        """The same environment with maps of one part; see `DrawnLevels`."""
        # Maps of another size are different from those of the training whatever their hash.
        is_comparable = isinstance(trained, FrozenLake) and trained.source.size == self.source.size
        trained_on = trained.source if is_comparable else None
        num_levels = self.source.num_levels if num_levels is None else num_levels
        return FrozenLake(self.config, replace(self.source, part=part, num_levels=num_levels, trained_on=trained_on))

    def begin(self, level: Int[Array, "*B"], params: BankParams) -> FrozenLakeState:
        """The starts of levels; slips are the same whenever a level of the bank is begun here."""
        # Levels may come several times in a bank, with different slips.
        seed = mix(params.bank.slip_seeds[level] ^ mix(level.astype(jnp.uint32)))
        zeros = jnp.zeros_like(level)
        return FrozenLakeState(time=zeros, level=level, position=jnp.zeros_like(level), seed=seed)

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: BankParams) -> FrozenLakeState:
        """Starts of levels drawn uniformly, each with slips of its own."""
        level_key, slip_key = jax.random.split(key)
        state = self.begin(draw_levels(level_key, shape, params), params)
        if not self.config.is_slippery:
            return state
        return state.replace(seed=jax.random.bits(slip_key, shape, jnp.uint32))  # pyright: ignore[reportAttributeAccessIssue]

    def transition(
        self, state: FrozenLakeState, action: jax.Array, params: BankParams
    ) -> tuple[FrozenLakeState, jax.Array]:
        """One move and its reward."""
        move, seed = action.astype(jnp.int32), state.seed
        if self.config.is_slippery:
            move = (move + (mix(seed) % 3).astype(jnp.int32) - 1) % len(MOVES)
            seed = seed + jnp.uint32(_SEED_STEP)
        position = jnp.asarray(next_cells(self.source.size))[state.position, move]
        new = FrozenLakeState(time=state.time + 1, level=state.level, position=position, seed=seed)
        return new, self.is_at_goal(new).astype(jnp.float32)

    def is_at_goal(self, state: FrozenLakeState) -> jax.Array:
        """Whether the agent is at the goal."""
        return state.position == self.source.num_cells - 1

    def is_terminated(self, state: FrozenLakeState, params: BankParams) -> jax.Array:
        """Whether the agent is at the goal or in a hole."""
        return self.is_at_goal(state) | (params.bank.holes[state.level, state.position] > 0)

    def observation(self, state: FrozenLakeState, params: BankParams) -> jax.Array:
        """What the configuration shows."""
        if self.config.observation == "position":
            return state.position
        cells = jnp.arange(self.source.num_cells)
        holes = params.bank.holes[state.level]
        planes = (holes, cells == state.position, cells == self.source.num_cells - 1)
        shape = (self.source.size, self.source.size, 3)
        return jnp.stack([plane.astype(jnp.uint8) for plane in planes], axis=-1).reshape(shape)

    def optimal_returns(self, params: BankParams, discount: float | jax.Array, pay: Pay | None = None) -> jax.Array:
        """The expected return of the best policy in every level of the bank, `[L]`."""
        values = optimal_values(
            params.bank.holes > 0,
            discount=discount,
            num_steps=params.max_steps_in_episode,
            is_slippery=self.config.is_slippery,
            pay=pay,
        )
        return values[:, 0]

    def count_levels(self, params: BankParams) -> tuple[int, int]:
        """Different maps of the bank, twice: start and goal are always the same."""
        num_maps = len({row.tobytes() for row in np.asarray(params.bank.holes)})
        return num_maps, num_maps

    def action_space(self, params: BankParams | None = None) -> spaces.Discrete:
        """Four moves."""
        del params
        return spaces.Discrete(len(MOVES))

    def observation_space(self, params: BankParams | None = None) -> spaces.Space:
        """A cell, or planes of 0 and 1."""
        del params
        if self.config.observation == "position":
            return spaces.Discrete(self.source.num_cells)
        return spaces.Box(0, 1, (self.source.size, self.source.size, 3), jnp.uint8)


def make_frozen_lake(
    *,
    size: int = 4,
    frozen_probability: int | float = 0.9,
    is_slippery: bool = False,
    num_levels: int = 4096,
    seed: int = 0,
    max_steps: int = 10,
    observation: Observation = "position",
) -> FrozenLake:
    """A lake; options are those of `FrozenLakeLevels` and `FrozenLakeConfig`."""
    levels = FrozenLakeLevels(size=size, frozen_probability=float(frozen_probability), num_levels=num_levels, seed=seed)
    config = FrozenLakeConfig(observation=observation, is_slippery=is_slippery, max_steps=max_steps)
    return FrozenLake(config, levels)


def optimal_values(
    is_hole: Bool[Array, "L C"],
    *,
    discount: float | Float[Array, ""],
    num_steps: int | Int[Array, ""],
    is_slippery: bool,
    pay: Pay | None = None,
) -> Float[Array, "L C"]:
    """Expected return of the best policy from each cell with `num_steps` steps left, by value iteration.

    V_0 = 0,  V_k(c) = max over moves of the mean over slips of r(c') + discount * V_{k-1}(c'),  V(goal) = V(hole) = 0

    Here c' is the cell that is entered, and r is 1 at the goal, else 0.

    Args:
        is_hole: of a square map, row by row.
        discount: gamma.
        num_steps: until the time limit.
        is_slippery: whether a move is one of three at random.
        pay: what is paid for a reward; the moves remain the best ones for the rewards themselves.
    """
    num_cells = is_hole.shape[1]
    targets = jnp.asarray(next_cells(round(num_cells**0.5)))
    is_goal = jnp.arange(num_cells) == num_cells - 1
    goes_on = ~(is_goal | is_hole)
    rewards = is_goal.astype(jnp.float32)
    paid = rewards if pay is None else pay(rewards)

    def move_values(rewards: jax.Array, values: jax.Array) -> jax.Array:
        entered = (rewards + discount * jnp.where(goes_on, values, 0.0))[:, targets]
        if not is_slippery:
            return entered
        return (jnp.roll(entered, 1, axis=-1) + entered + jnp.roll(entered, -1, axis=-1)) / 3

    def one_more(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        num_done, values, paid_values, _ = carry
        of_moves = move_values(rewards, values)
        best = jnp.argmax(of_moves, axis=-1, keepdims=True)
        new = jnp.take_along_axis(of_moves, best, axis=-1)[..., 0]
        new_paid = jnp.take_along_axis(move_values(paid, paid_values), best, axis=-1)[..., 0]
        return num_done + 1, new, new_paid, ((new != values) | (new_paid != paid_values)).any()

    zeros = jnp.zeros(is_hole.shape, jnp.float32)
    start = (jnp.zeros((), jnp.int32), zeros, zeros, jnp.array(True))
    # Values that a step does not change stay as they are.
    _, _, paid_values, _ = jax.lax.while_loop(lambda carry: (carry[0] < num_steps) & carry[3], one_more, start)
    return jnp.where(goes_on, paid_values, 0.0)


@functools.cache
def next_cells(size: int) -> Int[np.ndarray, "C 4"]:
    """The cell where each move from each cell leads, int32."""
    rows, columns = np.divmod(np.arange(size**2), size)
    moved = [
        np.clip(rows + down, 0, size - 1) * size + np.clip(columns + right, 0, size - 1) for down, right in _DIRECTIONS
    ]
    return np.stack(moved, axis=1).astype(np.int32)


def draw(holes: UInt8[np.ndarray, " C"]) -> list[str]:
    """The rows of a map in gymnasium's letters: S start, F frozen, H hole, G goal.

    Args:
        holes: 1 where a hole is, of a square map, row by row.
    """
    size = round(len(holes) ** 0.5)
    letters = np.where(holes > 0, "H", "F")
    letters[0], letters[-1] = "S", "G"
    return ["".join(row) for row in letters.reshape(size, size)]
