"""What our environments add to gymnax's: a step of a whole batch that draws its random numbers once.

gymnax's own `step` splits a key and computes a reset at every step of every environment. Ours say how a state is reset
for a batch, and are stepped by one transition and one select; `env.step` and `env.reset` remain gymnax's for one
environment, key by key.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment

from jaxrl_lm.types import PyTree

LevelPart = Literal["all", "training", "held-out"]
"""Which levels are drawn: any, those of training, or those that training never meets."""


class StepResult(NamedTuple):
    """One step of a batch of environments; those that ended are reset already.

    Attributes:
        observations: what the next action is chosen from, leaves `[B, ...]`.
        states: of the environments, leaves `[B, ...]`.
        rewards: float32 `[B]`.
        terminated: whether the episode came to its own end, bool `[B]`.
        truncated: whether a time limit cut it, bool `[B]`; both can hold, and then the end counts.
        final_observations: what the step led to, before any reset, leaves `[B, ...]`.
    """

    observations: PyTree
    states: PyTree
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_observations: PyTree


@struct.dataclass(kw_only=True)
class MaskedObservation:
    """An observation beside which actions may be taken.

    Attributes:
        observation: what is seen, leaves `[..., ...]`.
        action_mask: whether each action of a discrete space is legal, bool `[..., A]`; at least one is.
    """

    observation: PyTree
    action_mask: PyTree


class BatchEnvironment(environment.Environment[Any, Any]):
    """A gymnax environment whose transitions draw no random numbers and whose resets are drawn by the batch.

    Subclasses define `initial_states`, `transition`, `observation` and `is_terminated`.

    Attributes:
        end_name: what an episode that came to its own end is called in metrics, such as "solved".
    """

    end_name: ClassVar[str] = "terminated"

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: Any) -> Any:
        """States of new episodes, leaves `[*shape, ...]`, from one key."""
        raise NotImplementedError

    def transition(self, state: Any, action: jax.Array, params: Any) -> tuple[Any, jax.Array]:
        """The state after an action and its reward, for one environment."""
        raise NotImplementedError

    def observation(self, state: Any, params: Any) -> Any:
        """What the agent sees of a state."""
        raise NotImplementedError

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
    """A `BatchEnvironment` whose episodes are played in levels of a bank, which its parameters hold.

    This is all that a trainer needs in order to replace levels while it runs, to hold levels out for evaluation and to
    compare returns with the best possible. Parameters are pure data: those of several seeds can be stacked.
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
        """The user's choice of levels: trainers fold it into the keys that they draw levels from."""
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
        """Fresh levels for the episodes to come; running episodes go on in theirs. Jit it.

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
        """How many different levels the bank has, and how many different layouts; on the host."""
        raise NotImplementedError


def reset_batch(env: Any, key: jax.Array, num_envs: int, params: Any) -> tuple[PyTree, PyTree]:
    """Observations and states of `num_envs` new episodes of any gymnax environment."""
    if isinstance(env, BatchEnvironment):
        states = env.initial_states(key, (num_envs,), params)
        return jax.vmap(env.observation, (0, None))(states, params), states
    observations, states = jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), params)
    return _narrow(observations), states


def step_batch(env: Any, key: jax.Array, states: PyTree, actions: jax.Array, params: Any) -> StepResult:
    """Step a batch of any gymnax environment and reset what ended.

    Args:
        env: the environment.
        key: for transitions and resets.
        states: leaves `[B, ...]`.
        actions: `[B, ...]`.
        params: shared by the batch.
    """
    if isinstance(env, BatchEnvironment):
        return _step_ours(env, key, states, actions, params)
    keys = jax.random.split(key, jax.tree.leaves(states)[0].shape[0])
    if jnp.issubdtype(actions.dtype, jnp.floating):
        actions = actions.astype(jnp.result_type(float))  # gymnax's states are in JAX's default type
    observations, states, rewards, terminated, truncated, info = jax.vmap(env.step, (0, 0, 0, None))(
        keys, states, actions, params
    )
    # An environment's flags may be Python's or of another type; one form for all.
    return StepResult(
        observations=_narrow(observations),
        states=states,
        rewards=jnp.asarray(rewards, jnp.float32),
        terminated=jnp.asarray(terminated, bool),
        truncated=jnp.asarray(truncated, bool),
        final_observations=_narrow(info["final_observation"]),
    )


def _narrow(observations: PyTree) -> Any:
    """Observations in 32 bits where an environment made them in JAX's default type and JAX_ENABLE_X64 widened it."""
    narrow = {jnp.dtype(jnp.float64): jnp.float32, jnp.dtype(jnp.int64): jnp.int32}
    return jax.tree.map(lambda x: x.astype(narrow.get(x.dtype, x.dtype)), observations)


def _step_ours(env: BatchEnvironment, key: jax.Array, states: PyTree, actions: jax.Array, params: Any) -> StepResult:
    stepped, rewards = jax.vmap(env.transition, (0, 0, None))(states, actions, params)
    terminated = jax.vmap(env.is_terminated, (0, None))(stepped, params)
    truncated = jax.vmap(env.is_truncated, (0, None))(stepped, params)
    is_done = terminated | truncated
    fresh = env.initial_states(key, is_done.shape, params)

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_done.reshape(is_done.shape + (1,) * (old.ndim - 1)), new, old)

    states = jax.tree.map(pick, fresh, stepped)
    observe = jax.vmap(env.observation, (0, None))
    return StepResult(
        observations=observe(states, params),
        states=states,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        final_observations=observe(stepped, params),
    )
