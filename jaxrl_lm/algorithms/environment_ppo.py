"""PPO in parallel environments: collect a rollout, then apply the same PPO update as for language models."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm import checks
from jaxrl_lm.algorithms.ppo import PPOConfig, PPOState, check_minibatches, make_ppo
from jaxrl_lm.core.counters import next_count
from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.rollouts.acting import fill_axes, take_episode_metrics
from jaxrl_lm.rollouts.agent_policy import Policy, PolicyConfig, make_policy
from jaxrl_lm.rollouts.environments import (
    Normalizers,
    RolloutState,
    collect,
    init_normalizers,
    normalize_observations,
    start_rollout,
)
from jaxrl_lm.types import Act, Algorithm, EnvironmentLearner, Metrics, PyTree


def _ppo_defaults() -> PPOConfig:
    return PPOConfig(
        learning_rate=5e-4,
        num_epochs=4,
        num_minibatches=4,
        minibatch_unit="steps",
        value_coefficient=0.5,
        entropy_coefficient=0.01,
        max_grad_norm=0.5,
    )


@dataclass(frozen=True, kw_only=True)
class EnvironmentPPOConfig:
    """PPO in environments.

    Attributes:
        num_envs: number of parallel environments.
        num_steps: steps of each environment per update.
        discount: gamma.
        trace_decay: lambda of GAE.
        has_normalized_observations: standardise observations by their running mean and variance.
        has_normalized_rewards: divide rewards by the running standard deviation of discounted returns.
        policy: policy and value networks.
        ppo: PPO update. A policy with memory needs minibatch_unit=sequences.
    """

    num_envs: int = 64
    num_steps: int = 32
    discount: float = 0.99
    trace_decay: float = 0.95
    has_normalized_observations: bool = False
    has_normalized_rewards: bool = False
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ppo: PPOConfig = field(default_factory=_ppo_defaults)

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "num_envs", "num_steps")
        checks.between(self, 0, 1, "discount", "trace_decay")
        if self.policy.memory_size and self.ppo.minibatch_unit != "sequences":
            raise InputError(
                f"ppo.minibatch_unit={self.ppo.minibatch_unit!r}: a policy with memory_size={self.policy.memory_size} "
                "learns from whole sequences; use 'sequences'"
            )
        check_minibatches(self.ppo, self.num_envs, self.num_steps)


@record
class EnvironmentPPOHyperparams:
    """Settings of the rollout that are traced: a sweep over them is a vmap over states."""

    discount: PyTree
    trace_decay: PyTree


@record
class EnvironmentPPOState:
    """State of PPO in environments.

    Attributes:
        ppo: parameters, optimizer and hyperparameters of the update.
        rollout: state of the environments and memory of the policy.
        normalizers: running moments.
        hyperparams: traced settings of the rollout.
        key: base PRNG key.
        num_updates: updates done, int32 scalar.
    """

    ppo: PPOState
    rollout: RolloutState
    normalizers: Normalizers
    hyperparams: EnvironmentPPOHyperparams
    key: PyTree
    num_updates: PyTree


class _Parts(NamedTuple):
    """Static parts that all functions of an update use."""

    config: EnvironmentPPOConfig
    env: Any
    policy: Policy
    algorithm: Algorithm


def make_environment_ppo(config: EnvironmentPPOConfig, env: Any, env_params: Any) -> EnvironmentLearner:
    """PPO for an environment.

    Args:
        config: settings.
        env: any gymnax environment.
        env_params: an example of its parameters, for the spaces.

    Raises:
        InputError: the action space is neither discrete nor a flat box, or normalisation is on for observations that
            cannot be normalised.
    """
    policy = make_policy(config.policy, env, env_params)
    if config.has_normalized_observations and not hasattr(env.observation_space(env_params), "low"):
        raise InputError(f"has_normalized_observations: the observations of {env.name} are categorical; turn it off")
    parts = _Parts(config, env, policy, make_ppo(config.ppo, policy.evaluate))
    act, sample = _make_acts(policy)
    return EnvironmentLearner(
        init=partial(_init, parts),
        update=partial(_update, parts),
        act=act,
        sample=sample,
        init_memory=policy.init_memory,
        steps_per_update=config.num_envs * config.num_steps,
        batch_axes=lambda state: replace(fill_axes(state), rollout=fill_axes(state.rollout, 0)),
    )


def _init(parts: _Parts, key: jax.Array, env_params: Any) -> EnvironmentPPOState:
    config, env, policy, algorithm = parts
    params_key, reset_key, state_key = jax.random.split(key, 3)
    normalizers = init_normalizers(
        env, env_params, observations=config.has_normalized_observations, rewards=config.has_normalized_rewards
    )
    return EnvironmentPPOState(
        ppo=algorithm.init(policy.init(params_key), params_key),
        rollout=start_rollout(env, policy, reset_key, config.num_envs, env_params),
        normalizers=normalizers,
        hyperparams=EnvironmentPPOHyperparams(
            discount=jnp.float32(config.discount), trace_decay=jnp.float32(config.trace_decay)
        ),
        key=state_key,
        num_updates=jnp.zeros((), jnp.int32),
    )


def _update(parts: _Parts, state: EnvironmentPPOState, env_params: Any) -> tuple[EnvironmentPPOState, Metrics]:
    rollout_key, learn_key = jax.random.split(jax.random.fold_in(state.key, state.num_updates))
    rollout, trajectory, normalizers = collect(
        parts.env,
        parts.policy,
        state.ppo.params,
        env_params,
        state.rollout,
        rollout_key,
        state.normalizers,
        num_steps=parts.config.num_steps,
        discount=state.hyperparams.discount,
        trace_decay=state.hyperparams.trace_decay,
    )
    ppo, metrics = parts.algorithm.update(state.ppo, trajectory, learn_key)
    acting, episode_metrics = take_episode_metrics(rollout.acting)
    new = replace(
        state,
        ppo=ppo,
        rollout=replace(rollout, acting=acting),
        normalizers=normalizers,
        num_updates=next_count(state.num_updates),
    )
    return new, metrics | episode_metrics


def _make_acts(policy: Policy) -> tuple[Act, Act]:
    """The most likely actions, and actions drawn from the policy."""

    def act(
        state: EnvironmentPPOState, observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        del key  # the most likely action needs no randomness
        seen = normalize_observations(observations, state.normalizers)
        actions, memory = policy.best(state.ppo.params, seen, is_first, memory)
        return policy.to_env(actions), memory

    def sample(
        state: EnvironmentPPOState, observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        seen = normalize_observations(observations, state.normalizers)
        decision = policy.act(state.ppo.params, seen, is_first, memory, key)
        return policy.to_env(decision.actions), decision.memory

    return act, sample
