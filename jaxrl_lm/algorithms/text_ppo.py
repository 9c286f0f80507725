"""PPO of a language model that plays in text worlds, on the device: play turns, then the same PPO as everywhere.

A step of the trajectory is a turn or a token. Rewards are those of the world, minus a KL penalty

    r_t <- r_t - beta (log pi(a_t) - log pi_ref(a_t)).
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm import checks
from jaxrl_lm.algorithms.ppo import PPOConfig, PPOState, check_minibatches, make_ppo
from jaxrl_lm.core import masked
from jaxrl_lm.core.counters import next_count
from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.models.params import init_params
from jaxrl_lm.rollouts.acting import fill_axes, take_episode_metrics
from jaxrl_lm.rollouts.text_games import GameState, StepUnit, collect_turns, make_evaluate, start_games
from jaxrl_lm.rollouts.text_policy import ContextConfig, TextPolicy
from jaxrl_lm.types import Act, Algorithm, EnvironmentLearner, Metrics, PyTree, Trajectory


def _ppo_defaults() -> PPOConfig:
    # Returns of games are tens; a larger weight of their squared errors drowns the policy's gradient.
    return PPOConfig(
        learning_rate=3e-4,
        num_epochs=2,
        num_minibatches=4,
        value_loss="squared",
        value_coefficient=0.01,
        entropy_coefficient=0.003,
        max_grad_norm=0.5,
    )


@dataclass(frozen=True, kw_only=True)
class TextPPOConfig:
    """PPO of a language model in a text world.

    Attributes:
        num_envs: parallel games.
        num_steps: turns of each game per update.
        unit: step of GAE, ratios and clipping: a whole "turn", or a "token".
        discount: gamma, per turn.
        trace_decay: lambda of GAE, per step.
        kl_coefficient: beta of the KL penalty against the policy at the start, in reward per nat; 0 keeps no copy.
        context: what the model remembers, and its temperature.
        ppo: PPO update.
    """

    num_envs: int = 64
    num_steps: int = 16
    unit: StepUnit = "token"
    discount: float = 0.99
    trace_decay: float = 0.95
    kl_coefficient: float = 0.0
    context: ContextConfig = field(default_factory=ContextConfig)
    ppo: PPOConfig = field(default_factory=_ppo_defaults)

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "num_envs", "num_steps")
        checks.one_of(self, unit=StepUnit)
        checks.between(self, 0, 1, "discount", "trace_decay")
        checks.at_least(self, 0, "kl_coefficient")
        checks.finite(self, "kl_coefficient")
        if self.ppo.minibatch_unit != "sequences":
            raise InputError(
                f"ppo.minibatch_unit={self.ppo.minibatch_unit!r}: the tokens of a game are read together; use "
                "'sequences'"
            )
        if self.num_steps % self.context.new_turns:
            raise InputError(
                f"num_steps={self.num_steps} must be a multiple of context.turns - context.kept="
                f"{self.context.new_turns}, the new turns of a window"
            )
        check_minibatches(self.ppo, self.num_envs, self.num_steps)


@record
class TextPPOHyperparams:
    """Settings of the rollout that are traced: a sweep over them is a vmap over states."""

    discount: PyTree
    trace_decay: PyTree
    kl_coefficient: PyTree


@record
class TextPPOState:
    """State of PPO in a text world.

    Attributes:
        ppo: parameters, optimizer and hyperparameters of the update.
        reference: parameters at the start; None without a KL penalty.
        rollout: worlds, and what the model remembers.
        hyperparams: traced settings of the rollout.
        key: base PRNG key.
        num_updates: updates done, int32 scalar.
    """

    ppo: PPOState
    reference: PyTree
    rollout: GameState
    hyperparams: TextPPOHyperparams
    key: PyTree
    num_updates: PyTree


class _Parts(NamedTuple):
    """Static parts that all functions of an update use."""

    config: TextPPOConfig
    env: Any
    policy: TextPolicy
    algorithm: Algorithm


def make_text_ppo(config: TextPPOConfig, env: Any, env_params: Any, model: CausalLM) -> EnvironmentLearner:
    """PPO of a model in a text world.

    Args:
        config: settings.
        env: a text world (`envs.text.world.TextWorld`).
        env_params: an example of its parameters, for the spaces.
        model: with a value head; parameters are drawn at random, and replaced by `with_params`.

    Raises:
        InputError: the environment is no text world, or its turns exceed the model's context.
    """
    if not hasattr(env, "reader"):
        raise InputError(f"env={env.name}: it is no text world; choose one such as TextMaze-v0")
    policy = TextPolicy(
        model=model,
        context=config.context,
        observation_size=env.observation_space(env_params).shape[0],
        answer_size=env.action_space(env_params).shape[0],
        stops=env.reader.stops,
    )
    parts = _Parts(config, env, policy, make_ppo(config.ppo, make_evaluate(policy, config.unit)))
    return EnvironmentLearner(
        init=partial(_init, parts),
        update=partial(_update, parts),
        act=_make_act(policy, is_sampled=False),
        sample=_make_act(policy, is_sampled=True),
        init_memory=policy.init_window,
        steps_per_update=config.num_envs * config.num_steps,
        batch_axes=lambda state: replace(fill_axes(state), rollout=fill_axes(state.rollout, 0)),
    )


def with_params(state: TextPPOState, params: PyTree) -> TextPPOState:
    """The state before training with these parameters of the model."""
    reference = None if state.reference is None else params
    return replace(state, ppo=replace(state.ppo, params=params), reference=reference)


def _init(parts: _Parts, key: jax.Array, env_params: Any) -> TextPPOState:
    config, env, policy, algorithm = parts
    params_key, reset_key, state_key = jax.random.split(key, 3)
    params = init_params(policy.model, params_key)
    names = TextPPOHyperparams.__dataclass_fields__
    return TextPPOState(
        ppo=algorithm.init(params, params_key),
        reference=jax.tree.map(jnp.copy, params) if config.kl_coefficient else None,
        rollout=start_games(env, policy, reset_key, config.num_envs, env_params),
        hyperparams=TextPPOHyperparams(**{name: jnp.float32(getattr(config, name)) for name in names}),
        key=state_key,
        num_updates=jnp.zeros((), jnp.int32),
    )


def _update(parts: _Parts, state: TextPPOState, env_params: Any) -> tuple[TextPPOState, Metrics]:
    play_key, learn_key = jax.random.split(jax.random.fold_in(state.key, state.num_updates))
    games, trajectory = collect_turns(
        parts.env,
        parts.policy,
        state.ppo.params,
        env_params,
        state.rollout,
        play_key,
        num_turns=parts.config.num_steps,
        unit=parts.config.unit,
        discount=state.hyperparams.discount,
        trace_decay=state.hyperparams.trace_decay,
    )
    trajectory, found = _penalized(parts, state, trajectory)
    ppo, metrics = parts.algorithm.update(state.ppo, trajectory, learn_key)
    acting, episode_metrics = take_episode_metrics(games.acting)
    new = replace(state, ppo=ppo, rollout=replace(games, acting=acting), num_updates=next_count(state.num_updates))
    return new, metrics | episode_metrics | found


def _penalized(parts: _Parts, state: TextPPOState, trajectory: Trajectory) -> tuple[Trajectory, Metrics]:
    """The trajectory with the KL penalty in its rewards, and metrics."""
    num_tokens = jnp.sum(trajectory.actions >= 0, dtype=jnp.float32)
    num_turns = parts.config.num_envs * parts.config.num_steps
    metrics = {"turn/tokens": num_tokens / num_turns}
    if state.reference is None:
        return trajectory, metrics
    evaluate = make_evaluate(parts.policy, parts.config.unit)
    reference = evaluate(state.reference, trajectory.observations, trajectory.actions).log_probs
    divergence = masked.zero_masked(trajectory.log_probs - reference, trajectory.mask)
    rewards = trajectory.rewards - state.hyperparams.kl_coefficient * divergence
    return replace(trajectory, rewards=rewards), metrics | {"kl/turn": jnp.sum(divergence) / num_turns}


def _make_act(policy: TextPolicy, *, is_sampled: bool) -> Act:
    """The most likely answers, or answers drawn from the policy."""

    def act(
        state: TextPPOState, observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        turn = policy.act(state.ppo.params, observations, is_first, memory, key if is_sampled else None)
        return turn.tokens, turn.window

    return act
