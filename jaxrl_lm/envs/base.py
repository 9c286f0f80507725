"""Base classes of our environments, which step a whole batch and draw its random numbers once, and of wrappers.

gymnax's `step` splits a key and computes a reset at every step of every environment. Ours define how a batch is reset,
and are stepped by one transition and one select; `env.step` and `env.reset` remain those of gymnax, for one environment
and key.
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from gymnax.environments import environment

from jaxrl_lm.envs.stepping import BatchSteps
from jaxrl_lm.types import PyTree

Pay = Callable[[jax.Array], jax.Array]
"""The reward that an agent is paid for a reward of the environment."""

LevelPart = Literal["all", "training", "held-out"]
"""Which levels to draw: any, training levels, or held-out levels."""


class BatchEnvironment(BatchSteps, environment.Environment[Any, Any]):
    """A gymnax environment whose transitions draw no random numbers and whose resets are drawn by the batch.

    Subclasses define `initial_states`, `transition`, `observation` (see `BatchSteps`) and `is_terminated`.

    Attributes:
        end_name: name of a terminated episode in metrics, such as "solved".
    """

    end_name: ClassVar[str] = "terminated"

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """gymnax's reset of one environment."""
        state = self.initial_states(key, (), params)
        return self.observation(state, params), state

    def step_env(
        self, key: jax.Array, state: Any, action: int | float | jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[Any, Any]]:
        """gymnax's step of one environment, without time limit and reset."""
        del key
        state, reward = self.transition(state, jnp.asarray(action), params)
        return self.observation(state, params), state, reward, self.is_terminated(state, params), {}

    def get_obs(self, state: Any, params: Any = None, key: Any = None) -> Any:
        """gymnax's observation hook."""
        del key
        return self.observation(state, params)


class LevelEnvironment(BatchEnvironment):
    """A `BatchEnvironment` whose episodes are played in levels of a bank in its parameters.

    With this interface a trainer can replace levels during a run, hold out levels for evaluation, and compare returns
    with the optimum. Parameters are pure data: those of several seeds can be stacked.
    """

    @property
    def generates_levels(self) -> bool:
        """Whether levels are drawn at random; if not, `new_params` always gives the same ones."""
        raise NotImplementedError

    @property
    def num_levels(self) -> int:
        """Levels of a bank."""
        raise NotImplementedError

    @property
    def level_seed(self) -> int:
        """Seed of the levels; trainers fold it into their keys for levels."""
        raise NotImplementedError

    @property
    def blindness(self) -> str | None:
        """Why no policy can act well in levels that change, or None: an error message with the remedy."""
        return None

    def of_part(self, part: LevelPart, num_levels: int | None = None, *, trained: Any = None) -> "LevelEnvironment":
        """The same environment with levels of one part.

        Args:
            part: which levels.
            num_levels: size of the bank; None keeps it.
            trained: environment whose training levels a held-out part avoids; None for this one.
        """
        raise NotImplementedError

    def new_params(self, key: jax.Array) -> Any:
        """Parameters with a bank of levels; jit it."""
        raise NotImplementedError

    def refresh(self, params: Any, key: jax.Array) -> Any:
        """Fresh levels for new episodes; running episodes keep their levels. Jit it.

        Call it no more often than every `max_steps_in_episode` steps.
        """
        raise NotImplementedError

    def current_levels(self, params: Any, key: jax.Array, num_levels: int) -> Any:
        """Parameters with a bank of `num_levels` of the levels that new episodes are drawn from."""
        raise NotImplementedError

    def level_resets(self, params: Any) -> tuple[Any, Any]:
        """Observations and states of an episode at the start of every level of the bank, leaves `[L, ...]`."""
        raise NotImplementedError

    def optimal_returns(self, params: Any, discount: float | jax.Array, pay: Pay | None = None) -> jax.Array:
        """The best discounted return in every level of the bank, `[L]`.

        Args:
            params: parameters with the bank.
            discount: gamma.
            pay: change of each reward, as by a wrapper; the return is then that of the same actions.
        """
        raise NotImplementedError

    def count_levels(self, params: Any) -> tuple[int, int]:
        """Numbers of distinct levels and of distinct layouts in the bank; on the host."""
        raise NotImplementedError


class EnvironmentWrapper(environment.Environment[Any, Any]):
    """An environment around another; as it is, it changes nothing.

    Subclasses redefine what they change, and `step_env`. Levels of the environment inside (`levels_of`) are the same
    with a wrapper and without; only `of_part`, `level_resets` and `optimal_returns` depend on it, and are defined here.
    """

    def __init__(self, env: Any) -> None:
        """Wrap `env`, any gymnax environment."""
        self.env = env

    def begin(self, observation: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """Observation and state at the start of an episode, from those of the environment inside."""
        return observation, state

    def inner_state(self, state: PyTree) -> PyTree:
        """The state of the environment inside."""
        return state

    def pay(self, reward: jax.Array) -> jax.Array:
        """The reward that is paid for the reward of the environment inside."""
        return reward

    def of_part(self, part: LevelPart, num_levels: int | None = None, *, trained: Any = None) -> "EnvironmentWrapper":
        """`LevelEnvironment.of_part` in the same wrapper."""
        wrapper = copy.copy(self)
        wrapper.env = self.env.of_part(part, num_levels, trained=trained)
        return wrapper

    def level_resets(self, params: Any) -> tuple[PyTree, PyTree]:
        """`LevelEnvironment.level_resets` as the wrapper shows them."""
        return jax.vmap(self.begin)(*self.env.level_resets(params))

    def optimal_returns(self, params: Any, discount: float | jax.Array, pay: Pay | None = None) -> jax.Array:
        """`LevelEnvironment.optimal_returns` of the rewards that the wrapper pays."""

        def pay_both(reward: jax.Array) -> jax.Array:
            return self.pay(reward) if pay is None else pay(self.pay(reward))

        return self.env.optimal_returns(params, discount, pay_both)

    @property
    def default_params(self) -> Any:
        """Those of the environment inside."""
        return self.env.default_params

    @property
    def name(self) -> str:
        """That of the environment inside."""
        return self.env.name

    @property
    def num_actions(self) -> int:
        """Of the environment inside."""
        return self.env.num_actions

    @property
    def end_name(self) -> str:
        """Of the environment inside."""
        return getattr(self.env, "end_name", "terminated")

    def reset_env(self, key: jax.Array, params: Any) -> tuple[PyTree, PyTree]:
        """gymnax's reset of one environment."""
        return self.begin(*self.env.reset_env(key, params))

    def is_truncated(self, state: PyTree, params: Any) -> jax.Array:
        """Whether the time limit of the environment inside is reached."""
        return self.env.is_truncated(self.inner_state(state), params)

    def is_terminated(self, state: PyTree, params: Any) -> jax.Array:
        """Whether the environment inside says that the episode ended."""
        return self.env.is_terminated(self.inner_state(state), params)

    def action_space(self, params: Any = None) -> Any:
        """That of the environment inside."""
        return self.env.action_space(params)

    def observation_space(self, params: Any = None) -> Any:
        """That of the environment inside."""
        return self.env.observation_space(params)


def levels_of(env: Any) -> LevelEnvironment | None:
    """The environment with levels inside all wrappers, or None if there is none."""
    while isinstance(env, EnvironmentWrapper):
        env = env.env
    return env if isinstance(env, LevelEnvironment) else None


def generated_levels(env: Any) -> LevelEnvironment | None:
    """As `levels_of`, but None as well where levels are fixed, so that they cannot be replaced and held out."""
    levels = levels_of(env)
    return levels if levels is not None and levels.generates_levels else None
