"""The Q-network of the deep Q-learning algorithms and its action selection."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxrl_lm import checks
from jaxrl_lm.core import q_losses
from jaxrl_lm.envs.stepping import MaskedObservation
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import GAIN, Trunk, TrunkConfig, make_trunk, orthogonal
from jaxrl_lm.spaces import is_discrete
from jaxrl_lm.types import Act, PyTree


class QNetwork(nn.Module):
    """Values of all actions.

    Attributes:
        trunk: body of the network.
        num_actions: A.
        is_dueling: separate value and advantage streams, each with a hidden layer.
    """

    trunk: Trunk
    num_actions: int
    is_dueling: bool

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        features = self.trunk(observations)
        if not self.is_dueling:
            return _head(self.num_actions)(features)
        size = features.shape[-1]
        hidden = nn.relu(nn.Dense(2 * size, kernel_init=orthogonal(GAIN))(features))
        values = _head(1)(hidden[..., :size])
        return q_losses.dueling_q_values(values[..., 0], _head(self.num_actions)(hidden[..., size:]))


class QFunction(NamedTuple):
    """Action values as pure functions.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, observations) -> q_values [..., A]`, for observations with or without an action mask.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, PyTree], jax.Array]


def make_q_function(config: TrunkConfig, env: Any, env_params: Any, *, is_dueling: bool) -> QFunction:
    """The Q-function of an environment.

    Args:
        config: body of the network.
        env: any gymnax environment.
        env_params: an example of its parameters, for the spaces.
        is_dueling: see `QNetwork`.

    Raises:
        InputError: the action space is not discrete, or the observation space fits no network.
    """
    actions = env.action_space(env_params)
    if not is_discrete(actions):
        raise InputError(
            f"action_space={actions!r} of {env.name} is not discrete, and Q-learning takes the maximum over all "
            "actions; choose ppo, which fits continuous actions, or set binning.num_actions"
        )
    observations = env.observation_space(env_params)
    network = QNetwork(trunk=make_trunk(config, observations), num_actions=int(actions.n), is_dueling=is_dueling)

    def init(key: jax.Array) -> PyTree:
        return network.init(key, jnp.zeros((1, *observations.shape), observations.dtype))["params"]

    def apply(params: PyTree, observations: PyTree) -> jax.Array:
        if isinstance(observations, MaskedObservation):
            observations = observations.observation
        return network.apply({"params": params}, observations)  # pyright: ignore[reportReturnType]

    return QFunction(init=init, apply=apply)


def action_mask_of(observations: PyTree) -> jax.Array | None:
    """Mask of legal actions, bool `[..., A]`, or None if all are legal."""
    return observations.action_mask if isinstance(observations, MaskedObservation) else None


def epsilon_greedy_actions(
    q_values: Float[Array, "*B A"],
    uniforms: Float[Array, "*B"],
    epsilon: Float[Array, ""] | float,
    action_mask: Bool[Array, "*B A"] | None = None,
) -> Int[Array, "*B"]:
    """The best legal action, or with probability epsilon a legal action drawn uniformly.

    Args:
        q_values: Q(s, .).
        uniforms: numbers from [0, 1); each decides whether to explore and, rescaled, which action to take.
        epsilon: probability of exploring.
        action_mask: mask of legal actions; None if all are legal.
    """
    greedy = q_losses.greedy_actions(q_values, action_mask)
    fractions = uniforms / jnp.maximum(epsilon, 1e-12)
    if action_mask is None:
        num_legal, ranks = q_values.shape[-1], None
    else:
        ranks = jnp.cumsum(action_mask, axis=-1, dtype=jnp.int32)
        num_legal = ranks[..., -1]
    # Rounding can turn a fraction below 1 into the number of actions.
    drawn = jnp.minimum((fractions * num_legal).astype(jnp.int32), num_legal - 1)
    if ranks is not None:
        drawn = jnp.argmax(ranks > drawn[..., None], axis=-1).astype(jnp.int32)
    return jnp.where(uniforms < epsilon, drawn, greedy)


def make_acts(
    q_function: QFunction, params_of: Callable[[PyTree], PyTree], epsilon_of: Callable[[PyTree], jax.Array]
) -> tuple[Act, Act]:
    """`act` and `sample` of an `EnvironmentLearner` with a Q-function: greedy, and epsilon-greedy.

    Args:
        q_function: the action values.
        params_of: `params_of(state)`: parameters of the Q-function.
        epsilon_of: `epsilon_of(state)`: epsilon of the next update.
    """

    def act(
        state: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        del is_first, key
        q_values = q_function.apply(params_of(state), observations)
        return q_losses.greedy_actions(q_values, action_mask_of(observations)), memory

    def sample(
        state: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        q_values = q_function.apply(params_of(state), observations)
        uniforms = jax.random.uniform(key, is_first.shape, jnp.float32)
        return epsilon_greedy_actions(q_values, uniforms, epsilon_of(state), action_mask_of(observations)), memory

    return act, sample


def check_q_learner(config: Any, *fractions: str) -> None:
    """Check the settings that all Q-learners share; `fractions` names further settings that must be in [0, 1].

    Raises:
        InputError: a setting is out of range.
    """
    checks.at_least(config, 1, "num_envs")
    checks.at_least(config, 0, "anneal_updates")
    checks.between(config, 0, 1, "discount", "epsilon_start", "epsilon_end", "epsilon_fraction", *fractions)


def _head(num_outputs: int) -> nn.Dense:
    return nn.Dense(num_outputs, kernel_init=orthogonal(1.0))
