"""Environments as users write them in a file of their own; tests name this file."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class State:
    time: jax.Array
    position: jax.Array


@struct.dataclass
class Params:
    max_steps_in_episode: int = 10
    bonus: float = 1.0


class Corridor(environment.Environment):
    """Walk right to the end."""

    def __init__(self, length: int = 3):
        self.length = length

    @property
    def default_params(self):
        return Params()

    def reset_env(self, key, params):
        state = State(time=jnp.int32(0), position=jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        position = jnp.clip(state.position + 2 * action - 1, 0, self.length)
        state = State(time=state.time + 1, position=position)
        is_over = position == self.length
        return self.get_obs(state), state, jnp.where(is_over, params.bonus, 0.0), is_over, {}

    def get_obs(self, state, params=None, key=None):
        return jnp.array([state.position / self.length], jnp.float32)

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(0.0, 1.0, (1,), jnp.float32)

    @property
    def name(self):
        return "Corridor"


def make_corridor(length: int = 5):
    env = Corridor(length)
    return env, Params(max_steps_in_episode=20)


class FiveValues(Corridor):
    """As gymnax's before 1.0."""

    @partial(jax.jit, static_argnames=("self",))
    def step(self, key, state, action, params):
        return self.step_env(key, state, action, params)


class OtherShape(Corridor):
    def get_obs(self, state, params=None, key=None):
        return jnp.zeros(2)


class OtherState(Corridor):
    def step_env(self, key, state, action, params):
        observation, state, *rest = super().step_env(key, state, action, params)
        return observation, state.replace(position=state.position.astype(jnp.float32)), *rest


class Raises(Corridor):
    def reset_env(self, key, params):
        raise RuntimeError("no map of the corridor")


NOT_CALLABLE = 3


def returns_none():
    return None
