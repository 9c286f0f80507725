"""`ChainMaze-v0`: six states in a row, the smallest maze, whose exact values are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Float

from jaxrl_lm.envs.base import BatchEnvironment
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

NUM_STATES = 6
# Of up, down, left, right; there is nothing above or below the row.
_OFFSETS = (0, 0, -1, 1)


@struct.dataclass
class ChainState(environment.EnvState):
    """State of an episode.

    Attributes:
        time: steps made, int32.
        position: number of the state, 0 to 5, int32.
    """

    # gymnax says int, but under jit it is a tracer.
    time: PyTree = 0
    position: PyTree = 0


class ChainMaze(BatchEnvironment):
    """States s0 to s5 in a row, moves up, down, left and right; +1 for the step that reaches s5, else -1.

    Up, down and moves beyond the ends leave the agent where it is. Episodes begin in s0 and end in s5.
    """

    end_name = "solved"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChainMaze)

    def __hash__(self) -> int:
        return hash(ChainMaze)

    @property
    def default_params(self) -> environment.EnvParams:
        """A time limit of 100 steps."""
        return environment.EnvParams(max_steps_in_episode=100)

    @property
    def name(self) -> str:
        """Its id."""
        return "ChainMaze-v0"

    @property
    def num_actions(self) -> int:
        """Up, down, left, right."""
        return len(_OFFSETS)

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: environment.EnvParams) -> ChainState:
        """All in s0."""
        del key, params
        # Two arrays, since a donated buffer may be given only once.
        return ChainState(time=jnp.zeros(shape, jnp.int32), position=jnp.zeros(shape, jnp.int32))

    def transition(
        self, state: ChainState, action: jax.Array, params: environment.EnvParams
    ) -> tuple[ChainState, jax.Array]:
        """One move and its reward."""
        moved = state.position + jnp.array(_OFFSETS, jnp.int32)[action]
        new = ChainState(time=state.time + 1, position=jnp.clip(moved, 0, NUM_STATES - 1))
        return new, jnp.where(self.is_terminated(new, params), 1.0, -1.0)

    def is_terminated(self, state: ChainState, params: environment.EnvParams) -> jax.Array:
        """Whether the agent is at s5."""
        del params
        return state.position == NUM_STATES - 1

    def observation(self, state: ChainState, params: environment.EnvParams) -> jax.Array:
        """The state's number."""
        del params
        return state.position

    def action_space(self, params: environment.EnvParams | None = None) -> spaces.Discrete:
        """Four moves."""
        del params
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: environment.EnvParams | None = None) -> spaces.Discrete:
        """Six states."""
        del params
        return spaces.Discrete(NUM_STATES)

    def state_space(self, params: environment.EnvParams) -> spaces.Dict:
        """Position and time."""
        children: dict[str, Any] = {
            "position": spaces.Discrete(NUM_STATES),
            "time": spaces.Discrete(params.max_steps_in_episode + 1),
        }
        return spaces.Dict(children)


def optimal_values(discount: float) -> Float[np.ndarray, " S"]:
    """Exact V* of s0 to s5.

    V*(s5) = 0,  V*(s4) = 1,  V*(s_k) = -1 + discount * V*(s_{k+1})

    Args:
        discount: gamma, in [0, 1].

    Raises:
        InputError: for a discount outside [0, 1].
    """
    if not 0 <= discount <= 1:
        raise InputError(f"discount={discount} must be in [0, 1]")
    values = np.zeros(NUM_STATES)
    values[-2] = 1.0
    for state in range(NUM_STATES - 3, -1, -1):
        values[state] = -1.0 + discount * values[state + 1]
    return values
