"""Base classes of our environments, which step a whole batch and draw its random numbers once.

gymnax's `step` splits a key and computes a reset at every step of every environment. Ours define how a batch is reset,
and are stepped by one transition and one select; `env.step` and `env.reset` remain those of gymnax, for one environment
and key.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from gymnax.environments import environment

from jaxrl_lm.envs.stepping import BatchSteps

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

    def optimal_returns(self, params: Any, discount: float | jax.Array) -> jax.Array:
        """The best discounted return in every level of the bank, `[L]`."""
        raise NotImplementedError

    def count_levels(self, params: Any) -> tuple[int, int]:
        """Numbers of distinct levels and of distinct layouts in the bank; on the host."""
        raise NotImplementedError
