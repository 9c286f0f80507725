"""Policies of environments: what acts, what scores given actions, and what remembers.

A policy is pure functions over its parameters. `evaluate` is what PPO learns through, the same signature as a language
model's; how actions are distributed, and whether there is a memory, is known here and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces

from jaxrl_lm.core import distributions
from jaxrl_lm.envs.base import MaskedObservation
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.actor_critic import ActorCritic
from jaxrl_lm.models.trunks import TrunkConfig, make_trunk
from jaxrl_lm.types import ActionEvaluation, Evaluate, PyTree


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The networks of policy and value function.

    Attributes:
        trunk: layers between observation and heads.
        is_shared: one trunk for policy and value function, or one each.
        memory_size: units of a GRU, 0 for a policy without memory; with one the trunk is shared.
        bounds: how a continuous policy keeps within the action space: "clip" the Gaussian's draws before they are
            acted, or "squash" them by tanh.
        initial_log_std: of a continuous policy, in units of half the action range where squashed, else of actions.
    """

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    is_shared: bool = False
    memory_size: int = 0
    bounds: Literal["clip", "squash"] = "clip"
    initial_log_std: float = 0.0

    def __post_init__(self) -> None:
        if self.memory_size < 0:
            raise InputError(f"policy.memory_size={self.memory_size} must be 0 (none) or more units")
        if self.bounds not in get_args(Literal["clip", "squash"]):
            raise InputError(f"policy.bounds={self.bounds!r} must be clip or squash")


@struct.dataclass(kw_only=True)
class RememberedObservations:
    """What a policy with memory needs to score a window of actions.

    Attributes:
        observations: leaves `[B, T, ...]`.
        is_first: whether an episode begins at the step, bool `[B, T]`.
        memory: before the first step, `[B, M]`.
    """

    observations: PyTree
    is_first: PyTree
    memory: PyTree


class Decision(NamedTuple):
    """What a policy does in B environments.

    Attributes:
        actions: as `evaluate` scores them: integers `[B]`, or a Gaussian's draws `[B, D]`.
        log_probs: of these actions, `[B]`, nats.
        values: of what was seen, `[B]`.
        memory: behind this step, `[B, M]`; None without memory.
    """

    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    memory: PyTree


class Policy(NamedTuple):
    """Pure functions over the parameters; B environments, T steps.

    Attributes:
        init: `init(key) -> params`.
        act: `act(params, observations, is_first, memory, key) -> Decision`: draw actions.
        best: `best(params, observations, is_first, memory) -> (actions, memory)`: the likeliest actions.
        value: `value(params, observations, is_first, memory) -> values [B]`.
        evaluate: scores given actions, leaves `[B, T, ...]`.
        to_env: `to_env(actions)`: what the environment is given for an action.
        init_memory: `init_memory(num_envs) -> memory`, None for a policy without.
        has_memory: whether windows must be learnt from whole.
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
    """The policy for an environment's spaces.

    Raises:
        InputError: the action space is neither discrete nor a flat box with bounds.
    """
    action_space = env.action_space(env_params)
    is_discrete = isinstance(action_space, spaces.Discrete)
    head = _categorical() if is_discrete else _gaussian(config, _flat_box(env, action_space))
    trunk = make_trunk(config.trunk, env.observation_space(env_params))
    model = ActorCritic(
        trunk=trunk,
        num_outputs=action_space.n if is_discrete else action_space.shape[0],
        is_shared=config.is_shared,
        memory_size=config.memory_size,
        has_log_std=not is_discrete,
        initial_log_std=config.initial_log_std,
    )
    example = env.observation_space(env_params).sample(jax.random.key(0))

    def init(key: jax.Array) -> PyTree:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None], example)
        return model.init(key, batch, method="init_all")["params"]

    def forward(params: PyTree, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        return cast(tuple[jax.Array, jax.Array], model.apply({"params": params}, seen))

    def step(
        params: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        seen, action_mask = _split_mask(observations)
        if config.memory_size:
            unrolled: Any = model.apply({"params": params}, seen[:, None], is_first[:, None], memory, method="unroll")
            outputs, values, memory = unrolled[0][:, 0], unrolled[1][:, 0], unrolled[2]
        else:
            outputs, values = forward(params, seen)
        return _masked(outputs, action_mask), values, memory

    def act(params: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array) -> Decision:
        outputs, values, memory = step(params, observations, is_first, memory)
        actions = head.sample(key, outputs, params)
        return Decision(actions, head.log_prob(outputs, params, actions), values, memory)

    def best(params: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree) -> tuple[jax.Array, PyTree]:
        outputs, _, memory = step(params, observations, is_first, memory)
        return head.mode(outputs), memory

    def value(params: PyTree, observations: PyTree, is_first: jax.Array, memory: PyTree) -> jax.Array:
        return step(params, observations, is_first, memory)[1]

    def evaluate(params: PyTree, observations: PyTree, actions: jax.Array) -> ActionEvaluation:
        if config.memory_size:
            seen, action_mask = _split_mask(observations.observations)
            unrolled: Any = model.apply(
                {"params": params}, seen, observations.is_first, observations.memory, method="unroll"
            )
            outputs, values, _ = unrolled
            return _score(head, params, outputs, values, action_mask, actions)
        # One batch axis instead of two: sums over a few actions are then three times as fast on a CPU.
        seen, action_mask = _split_mask(jax.tree.map(_merge_batch_and_time, observations))
        outputs, values = forward(params, seen)
        scores = _score(head, params, outputs, values, action_mask, _merge_batch_and_time(actions))
        return jax.tree.map(lambda leaf: leaf.reshape(actions.shape[:2]), scores)

    return Policy(
        init=init,
        act=act,
        best=best,
        value=value,
        evaluate=evaluate,
        to_env=head.to_env,
        init_memory=lambda num_envs: jnp.zeros((num_envs, config.memory_size)) if config.memory_size else None,
        has_memory=config.memory_size > 0,
    )


class _Head(NamedTuple):
    """A distribution over actions, from a network's outputs and the parameters."""

    sample: Callable[[jax.Array, jax.Array, PyTree], jax.Array]
    log_prob: Callable[[jax.Array, PyTree, jax.Array], jax.Array]
    entropy: Callable[[jax.Array, PyTree], jax.Array]
    mode: Callable[[jax.Array], jax.Array]
    to_env: Callable[[jax.Array], jax.Array]


def _score(
    head: _Head,
    params: PyTree,
    outputs: jax.Array,
    values: jax.Array,
    action_mask: jax.Array | None,
    actions: jax.Array,
) -> ActionEvaluation:
    """What the distribution that a network's outputs stand for says of given actions."""
    outputs = _masked(outputs, action_mask)
    return ActionEvaluation(
        log_probs=head.log_prob(outputs, params, actions), entropies=head.entropy(outputs, params), values=values
    )


def _categorical() -> _Head:
    return _Head(
        sample=lambda key, logits, _: distributions.sample_categorical(key, logits),
        log_prob=lambda logits, _, actions: distributions.categorical_log_prob(logits, actions),
        entropy=lambda logits, _: distributions.categorical_entropy(logits),
        mode=lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int32),
        to_env=lambda actions: actions,
    )


def _gaussian(config: PolicyConfig, box: spaces.Box) -> _Head:
    low, high = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), box.shape) for bound in (box.low, box.high))
    is_squashed = config.bounds == "squash"

    def sample(key: jax.Array, means: jax.Array, params: PyTree) -> jax.Array:
        return means + jnp.exp(params["log_std"]) * jax.random.normal(key, means.shape)

    def log_prob(means: jax.Array, params: PyTree, actions: jax.Array) -> jax.Array:
        # Actions are kept before tanh: undoing it would lose all precision where it saturates.
        density = distributions.gaussian_log_prob(actions, means, params["log_std"])
        return density - distributions.squash_log_det(actions) if is_squashed else density

    def entropy(means: jax.Array, params: PyTree) -> jax.Array:
        # Of the Gaussian before tanh or clipping: neither of these has a closed form.
        return jnp.broadcast_to(distributions.gaussian_entropy(params["log_std"]), means.shape[:-1])

    def to_env(actions: jax.Array) -> jax.Array:
        if is_squashed:
            return low + (jnp.tanh(actions) + 1.0) * 0.5 * (high - low)
        return jnp.clip(actions, low, high)

    return _Head(sample=sample, log_prob=log_prob, entropy=entropy, mode=lambda means: means, to_env=to_env)


def _flat_box(env: Any, space: Any) -> spaces.Box:
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space
    raise InputError(f"env={env.name}: its action space {space!r} is neither discrete nor a flat box; ppo knows these")


def _split_mask(observations: PyTree) -> tuple[Any, jax.Array | None]:
    if isinstance(observations, MaskedObservation):
        return observations.observation, observations.action_mask
    return observations, None


def _merge_batch_and_time(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(-1, *leaf.shape[2:])


def _masked(outputs: jax.Array, action_mask: jax.Array | None) -> jax.Array:
    return outputs if action_mask is None else distributions.mask_logits(outputs, action_mask)
