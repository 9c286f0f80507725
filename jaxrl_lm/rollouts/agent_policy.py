"""Policies for environments: acting, evaluating given actions, and memory.

A policy is a set of pure functions of its parameters. PPO learns through `evaluate`, which has the same signature as a
language model's. Only this module depends on the action distribution and the memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import checks
from jaxrl_lm.core import distributions
from jaxrl_lm.core.records import record
from jaxrl_lm.envs.stepping import MaskedObservation
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.actor_critic import ActorCritic, MemoryKind, StdKind, memory_width
from jaxrl_lm.models.trunks import TrunkConfig, make_trunk
from jaxrl_lm.spaces import is_box, is_discrete
from jaxrl_lm.types import ActionEvaluation, Evaluate, PyTree

BoundsKind = Literal["clip", "squash"]

# Range of the log standard deviation that a network outputs.
MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0
# Environments write "unbounded" as infinity or as the largest float32.
_UNBOUNDED = float(np.finfo(np.float32).max) / 2


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The networks of policy and value function.

    Attributes:
        trunk: body of the network, before the heads.
        is_shared: share one trunk between policy and value function, or use one for each.
        memory_size: units of the recurrent memory, 0 for none; a policy with memory shares its trunk.
        memory: recurrent cell: "gru" or "lstm".
        bounds: how a continuous policy respects the action bounds: "clip" sampled actions, or "squash" them with tanh,
            which needs a bounded space.
        std: log standard deviation of a continuous policy: one "parameter" per dimension, independent of the
            observation, or a network output that depends on the "state", kept between -20 and 2.
        initial_log_std: initial log standard deviation, in units of half the action range if squashed, else of actions.

    Reference: Hausknecht and Stone, 2015, Deep Recurrent Q-Learning for Partially Observable MDPs (LSTM); Haarnoja et
    al., 2018, Soft Actor-Critic Algorithms and Applications (state-dependent std and its range).
    """

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    is_shared: bool = False
    memory_size: int = 0
    memory: MemoryKind = "gru"
    bounds: BoundsKind = "clip"
    std: StdKind = "parameter"
    initial_log_std: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "memory_size", prefix="policy.")
        checks.one_of(self, prefix="policy.", memory=MemoryKind, bounds=BoundsKind, std=StdKind)
        checks.finite(self, "initial_log_std", prefix="policy.")
        if self.std == "state":
            checks.between(self, MIN_LOG_STD, MAX_LOG_STD, "initial_log_std", prefix="policy.")


@record
class RememberedObservations:
    """Inputs of a policy with memory to evaluate a sequence of actions.

    Attributes:
        observations: leaves `[B, T, ...]`.
        is_first: whether an episode starts at the step, bool `[B, T]`.
        memory: memory before the first step, `[B, M]`.
    """

    observations: PyTree
    is_first: PyTree
    memory: PyTree


class Decision(NamedTuple):
    """Sampled actions of a policy in B environments.

    Attributes:
        actions: actions as `evaluate` takes them: integers `[B]`, or Gaussian samples `[B, D]`.
        log_probs: log-probabilities of the actions, `[B]`, nats.
        values: values of the observations, `[B]`.
        memory: memory after this step, `[B, M]`; None without memory.
    """

    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    memory: PyTree


class Policy(NamedTuple):
    """Pure functions over the parameters; B environments, T steps.

    Attributes:
        init: `init(key) -> params`.
        act: `act(params, observations, is_first, memory, key) -> Decision`: sample actions.
        best: `best(params, observations, is_first, memory) -> (actions, memory)`: the most likely actions.
        value: `value(params, observations, is_first, memory) -> values [B]`.
        evaluate: evaluates given actions, leaves `[B, T, ...]`.
        to_env: `to_env(actions)`: converts actions to those of the environment.
        init_memory: `init_memory(num_envs) -> memory`; None without memory.
        has_memory: whether the policy must learn from whole sequences.
    """

    init: Callable[[jax.Array], PyTree]
    act: Callable[[PyTree, PyTree, jax.Array, PyTree, jax.Array], Decision]
    best: Callable[[PyTree, PyTree, jax.Array, PyTree], tuple[jax.Array, PyTree]]
    value: Callable[[PyTree, PyTree, jax.Array, PyTree], jax.Array]
    evaluate: Evaluate
    to_env: Callable[[jax.Array], jax.Array]
    init_memory: Callable[[int], PyTree]
    has_memory: bool


def make_policy(config: PolicyConfig, env: Any, env_params: Any) -> Policy:
    """A policy for the spaces of an environment.

    Raises:
        InputError: the action space is neither discrete nor a flat box, or it is unbounded and actions are squashed.
    """
    action_space = env.action_space(env_params)
    has_choices = is_discrete(action_space)
    head = _categorical() if has_choices else _gaussian(config, _box_of(config, env, action_space))
    network = _make_network(config, env, env_params)

    def act(params: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array) -> Decision:
        outputs, values, memory = network.step(params, observations, is_first, memory)
        actions = head.sample(key, outputs, params)
        return Decision(actions, head.log_prob(outputs, params, actions), values, memory)

    def best(params: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree) -> tuple[jax.Array, PyTree]:
        outputs, _, memory = network.step(params, observations, is_first, memory)
        return head.mode(outputs), memory

    def value(params: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree) -> jax.Array:
        return network.step(params, observations, is_first, memory)[1]

    def evaluate(params: PyTree, observations: PyTree, actions: jax.Array) -> ActionEvaluation:
        outputs, values = network.window(params, observations)
        taken = actions.reshape(*values.shape, *actions.shape[2:])
        scores = ActionEvaluation(
            log_probs=head.log_prob(outputs, params, taken), entropies=head.entropy(outputs, params), values=values
        )
        return jax.tree.map(lambda leaf: leaf.reshape(actions.shape[:2]), scores)

    def init_memory(num_envs: int) -> jax.Array | None:
        width = memory_width(config.memory, config.memory_size)
        return jnp.zeros((num_envs, width), jnp.float32) if width else None

    return Policy(
        init=network.init,
        act=act,
        best=best,
        value=value,
        evaluate=evaluate,
        to_env=head.to_env,
        init_memory=init_memory,
        has_memory=config.memory_size > 0,
    )


class _Network(NamedTuple):
    """The network as pure functions; outputs of illegal actions are masked.

    Attributes:
        init: `init(key) -> params`.
        step: `step(params, observations, is_first, memory) -> (outputs [B, A], values [B], memory)`.
        window: `window(params, observations) -> (outputs, values)` of sequences of T steps: `[B, T, A]` and `[B, T]`
            with memory, else `[B * T, A]` and `[B * T]`.
    """

    init: Callable[[jax.Array], PyTree]
    step: Callable[[PyTree, PyTree, jax.Array, PyTree], tuple[jax.Array, jax.Array, PyTree]]
    window: Callable[[PyTree, PyTree], tuple[jax.Array, jax.Array]]


def _make_model(config: PolicyConfig, action_space: Any, observation_space: Any) -> ActorCritic:
    has_choices = is_discrete(action_space)
    return ActorCritic(
        trunk=make_trunk(config.trunk, observation_space),
        num_actions=action_space.n if has_choices else action_space.shape[0],
        is_shared=config.is_shared,
        memory_size=config.memory_size,
        memory_kind=config.memory,
        std=None if has_choices else config.std,
        initial_log_std=config.initial_log_std,
    )


def _make_network(config: PolicyConfig, env: Any, env_params: Any) -> _Network:
    observation_space = env.observation_space(env_params)
    model = _make_model(config, env.action_space(env_params), observation_space)
    example = observation_space.sample(jax.random.key(0))

    def init(key: jax.Array) -> PyTree:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None], example)
        return model.init(key, batch, method="init_all")["params"]

    def apply(params: PyTree, *inputs: Any, method: str | None = None) -> Any:
        return model.apply({"params": params}, *inputs, method=method)

    def step(
        params: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        seen, action_mask = _split_mask(observations)
        if config.memory_size:
            outputs, values, memory = apply(params, seen[:, None], is_first[:, None], memory, method="unroll")
            outputs, values = outputs[:, 0], values[:, 0]
        else:
            outputs, values = apply(params, seen)
        return _masked(outputs, action_mask), values, memory

    def window(params: PyTree, observations: PyTree) -> tuple[jax.Array, jax.Array]:
        if config.memory_size:
            seen, action_mask = _split_mask(observations.observations)
            outputs, values, _ = apply(params, seen, observations.is_first, observations.memory, method="unroll")
        else:
            # One batch axis instead of two: sums over a few actions are then three times as fast on a CPU.
            seen, action_mask = _split_mask(jax.tree.map(_merge_batch_and_time, observations))
            outputs, values = apply(params, seen)
        return _masked(outputs, action_mask), values

    return _Network(init=init, step=step, window=window)


class _Head(NamedTuple):
    """Action distribution given the network's outputs and the parameters."""

    sample: Callable[[jax.Array, jax.Array, PyTree], jax.Array]
    log_prob: Callable[[jax.Array, PyTree, jax.Array], jax.Array]
    entropy: Callable[[jax.Array, PyTree], jax.Array]
    mode: Callable[[jax.Array], jax.Array]
    to_env: Callable[[jax.Array], jax.Array]


def _categorical() -> _Head:
    return _Head(
        sample=lambda key, logits, _: distributions.sample_categorical(key, logits),
        log_prob=lambda logits, _, actions: distributions.categorical_log_prob(logits, actions),
        entropy=lambda logits, _: distributions.categorical_entropy(logits),
        mode=lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int32),
        to_env=lambda actions: actions,
    )


def _gaussian(config: PolicyConfig, box: Any) -> _Head:
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), box.shape) for bound in (box.low, box.high))
    is_squashed = config.bounds == "squash"

    def split(outputs: jax.Array, params: PyTree) -> tuple[jax.Array, jax.Array]:
        if config.std == "parameter":
            return outputs, params["log_std"]
        means, log_stds = jnp.split(outputs, 2, axis=-1)
        return means, jnp.clip(log_stds + config.initial_log_std, MIN_LOG_STD, MAX_LOG_STD)

    def sample(key: jax.Array, outputs: jax.Array, params: PyTree) -> jax.Array:
        means, log_stds = split(outputs, params)
        return means + jnp.exp(log_stds) * jax.random.normal(key, means.shape, means.dtype)

    def log_prob(outputs: jax.Array, params: PyTree, actions: jax.Array) -> jax.Array:
        # Actions are stored before tanh: inverting it would lose all precision where it saturates.
        density = distributions.gaussian_log_prob(actions, *split(outputs, params))
        return density - distributions.squash_log_det(actions) if is_squashed else density

    def entropy(outputs: jax.Array, params: PyTree) -> jax.Array:
        # Entropy of the Gaussian before tanh or clipping, which have no closed form.
        return jnp.broadcast_to(distributions.gaussian_entropy(split(outputs, params)[1]), outputs.shape[:-1])

    def mode(outputs: jax.Array) -> jax.Array:
        return outputs[..., : box.shape[0]]

    def to_env(actions: jax.Array) -> Any:
        if is_squashed:
            return low + (jnp.tanh(actions) + 1.0) * 0.5 * (high - low)
        return jnp.clip(actions, low, high)

    return _Head(sample=sample, log_prob=log_prob, entropy=entropy, mode=mode, to_env=to_env)


def _box_of(config: PolicyConfig, env: Any, space: Any) -> Any:
    """The action space as a box.

    Raises:
        InputError: a Gaussian policy does not support it.
    """
    if not is_box(space) or len(space.shape) != 1:
        raise InputError(
            f"env={env.name}: its action space {space!r} is neither discrete nor a flat box; ppo supports only these"
        )
    if jnp.issubdtype(space.dtype, jnp.integer):
        raise InputError(
            f"env={env.name}: its actions are integers {list(space.shape)}, which ppo does not choose; in a text world "
            "use text-ppo"
        )
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    # Written so that NaN fails too.
    is_bounded = np.all(np.abs(low) < _UNBOUNDED) and np.all(np.abs(high) < _UNBOUNDED)
    if config.bounds == "squash" and not is_bounded:
        raise InputError(
            f"policy.bounds='squash': the actions of {env.name} are unbounded "
            f"(low={space.low}, high={space.high}); choose policy.bounds=clip"
        )
    return space


def _split_mask(observations: PyTree) -> tuple[Any, jax.Array | None]:
    if isinstance(observations, MaskedObservation):
        return observations.observation, observations.action_mask
    return observations, None


def _merge_batch_and_time(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(-1, *leaf.shape[2:])


def _masked(outputs: jax.Array, action_mask: jax.Array | None) -> jax.Array:
    return outputs if action_mask is None else distributions.mask_logits(outputs, action_mask)
