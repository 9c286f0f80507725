"""A world of prizes, the chain's exact action values, and the tabular algorithms as a loop over steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxrl_lm.algorithms.tabular import TabularConfig
from jaxrl_lm.envs.base import BatchEnvironment
from jaxrl_lm.envs.stepping import MaskedObservation
from jaxrl_lm.types import PyTree

GAMMA, NUM_STATES, NUM_ACTIONS = 0.9, 6, 4


@struct.dataclass
class PrizeState(environment.EnvState):
    """A group, which is seen, and a prize, which is not."""

    group: PyTree = 0
    prize: PyTree = 0.0


class Prizes(BatchEnvironment):
    """Each step pays the prize drawn with its state; episodes end after one step, or never but by the time limit."""

    def __init__(self, *, num_groups: int = 3, num_actions: int = 1, is_endless: bool = False, **seen: Any) -> None:
        self.num_groups, self.num_choices, self.is_endless = num_groups, num_actions, is_endless
        self.action_box, self.has_mask = seen.get("action_box"), seen.get("has_mask")

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: Any) -> PrizeState:
        group = jax.random.randint(key, shape, 0, self.num_groups)
        prize = jnp.ones(shape) if self.is_endless else jax.random.normal(key, shape)
        return PrizeState(time=jnp.zeros(shape, jnp.int32), group=group, prize=prize)

    def transition(self, state: PrizeState, action: jax.Array, params: Any) -> tuple[PrizeState, jax.Array]:
        return state.replace(time=state.time + 1), state.prize

    def is_terminated(self, state: PrizeState, params: Any) -> jax.Array:
        return jnp.zeros((), bool) if self.is_endless else state.time > 0

    def observation(self, state: PrizeState, params: Any) -> Any:
        if self.has_mask:
            return MaskedObservation(observation=state.group, action_mask=jnp.ones(self.num_choices, bool))
        return state.group

    def observation_space(self, params: Any) -> spaces.Space:
        return spaces.Discrete(self.num_groups)

    def action_space(self, params: Any) -> spaces.Space:
        return self.action_box or spaces.Discrete(self.num_choices)


def exact_q(epsilon: float) -> np.ndarray:
    """Values `[S, A]` of the chain for the best of the policies that explore with `epsilon`."""
    q = np.zeros((NUM_STATES, NUM_ACTIONS))
    for _ in range(500):
        values = epsilon * q.mean(axis=1) + (1 - epsilon) * q.max(axis=1)
        for state, action in np.ndindex(NUM_STATES - 1, NUM_ACTIONS):
            after = max(0, state + (0, 0, -1, 1)[action])
            q[state, action] = 1.0 if after == NUM_STATES - 1 else -1.0 + GAMMA * values[after]
    return q


class LoopLearner:
    """The algorithms one step at a time in float64, told what was done."""

    def __init__(self, config: TabularConfig, num_tables: int) -> None:
        self.config = config
        self.q = np.zeros((num_tables, NUM_STATES, NUM_ACTIONS))
        self.visits = np.zeros_like(self.q)
        self.traces = np.zeros((NUM_STATES, NUM_ACTIONS))

    def bootstrap(self, table: int, state: int, next_action: int) -> float:
        config, q = self.config, self.q[table, state]
        if config.kind == "double-q":
            return self.q[1 - table, state, np.argmax(q)]
        if config.kind == "sarsa":
            return q[next_action]
        if config.kind == "expected-sarsa":
            best, epsilon = q == q.max(), config.epsilon_end
            return sum(
                v * (epsilon / NUM_ACTIONS + (1 - epsilon) * b / best.sum()) for v, b in zip(q, best, strict=True)
            )
        return q.max()

    def learn(self, entry: tuple[int, int, int], reward: float, after: int, *, ends: str, next_action: int) -> None:
        table, state, action = entry
        config = self.config
        was_greedy = self.q[entry] == self.q[table, state].max()
        value = 0.0 if ends == "terminated" else self.bootstrap(table, after, next_action)
        error = reward + GAMMA * value - self.q[entry]
        self.visits[entry] += 1
        rates = config.learning_rate / np.maximum(self.visits, 1) ** config.visit_power
        if config.kind != "q-lambda":
            self.q[entry] += rates[entry] * error
            return
        self.traces *= GAMMA * config.trace_decay * was_greedy
        self.traces[state, action] = 1.0
        self.q[0] += rates[0] * error * self.traces
        if ends:
            self.traces[:] = 0.0
