"""Parallelised Q-network: Q(lambda) on fresh rollouts of many environments, without replay or target network.

Each update: act epsilon-greedily for T steps, compute the lambda-returns

    G_t = r_t + discount_t * ((1 - trace_t) * max_a Q(s_{t+1}, a) + trace_t * G_{t+1})

from the values of the rollout, and regress Q(s_t, a_t) on them for several epochs of minibatches. Layer normalisation
replaces the target network.

Reference: Gallici et al., 2024, Simplifying Deep Temporal Difference Learning.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_lm import checks
from jaxrl_lm.algorithms.minibatches import mean_metrics, run_epochs
from jaxrl_lm.algorithms.q_networks import (
    QFunction,
    action_mask_of,
    check_q_learner,
    epsilon_greedy_actions,
    make_acts,
    make_q_function,
)
from jaxrl_lm.algorithms.schedules import (
    ScheduleConfig,
    exploration,
    has_constant_exploration,
    run_share,
    scheduled,
)
from jaxrl_lm.core import q_losses, returns
from jaxrl_lm.core.counters import next_count
from jaxrl_lm.core.records import record
from jaxrl_lm.envs.stepping import StepResult
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.acting import ActingState, fill_axes, start_acting, step_acting, take_episode_metrics
from jaxrl_lm.rollouts.environments import where_any
from jaxrl_lm.types import EnvironmentLearner, Metrics, PyTree


def _default_trunk() -> TrunkConfig:
    return TrunkConfig(hidden_sizes=(128, 128), activation="relu", layer_norm=True)


@dataclass(frozen=True, kw_only=True)
class PQNConfig:
    """Settings of PQN; the defaults are those of its authors for CartPole.

    Attributes:
        num_envs: number of parallel environments.
        num_steps: T, steps of each environment per update.
        num_epochs: passes over each rollout.
        num_minibatches: minibatches per epoch; must divide num_envs * num_steps.
        discount: gamma.
        trace_decay: lambda.
        learning_rate: initial step size of rectified Adam.
        learning_rate_schedule: schedule of the learning rate.
        max_grad_norm: largest global norm of the gradient; 0 disables clipping.
        reward_scale: factor on rewards before learning, so that small steps (1e-4) need not reach large values
            (10); `value/...` metrics and losses are scaled, `episode/return` is not.
        epsilon_start: initial share of random actions.
        epsilon_end: share of random actions after `epsilon_fraction` of the run.
        epsilon_fraction: share of the run over which epsilon falls linearly; 0 uses `epsilon_end` throughout.
        anneal_updates: length of the run in updates, for learning rate and epsilon; None lets the trainer fill it in
            (`make_pqn` itself treats None as 0: a constant rate and the final epsilon).
        trunk: body of the network.
    """

    num_envs: int = 32
    num_steps: int = 64
    num_epochs: int = 4
    num_minibatches: int = 16
    discount: float = 0.99
    trace_decay: float = 0.95
    learning_rate: float = 1e-4
    learning_rate_schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="linear"))
    max_grad_norm: float = 10.0
    reward_scale: float = 0.1
    epsilon_start: float = 1.0
    epsilon_end: float = 0.2
    epsilon_fraction: float = 0.2
    anneal_updates: int | None = None
    trunk: TrunkConfig = field(default_factory=_default_trunk)

    def __post_init__(self) -> None:
        check_q_learner(self, "trace_decay")
        checks.at_least(self, 1, "num_steps", "num_epochs", "num_minibatches")
        checks.at_least(self, 0, "max_grad_norm")
        checks.above(self, 0, "learning_rate", "reward_scale")
        checks.finite(self, "learning_rate", "reward_scale")
        if self.batch_size % self.num_minibatches:
            raise InputError(
                f"num_minibatches={self.num_minibatches} does not divide the {self.batch_size} steps per rollout "
                f"(num_envs * num_steps); choose a divisor of {self.batch_size}"
            )

    @property
    def has_schedule(self) -> bool:
        """Whether the learning rate or epsilon changes during a run."""
        return not (self.learning_rate_schedule.is_constant and has_constant_exploration(self))

    @property
    def batch_size(self) -> int:
        """Environment steps per rollout."""
        return self.num_envs * self.num_steps


@record
class PQNHyperparams:
    """Settings that are traced: a sweep over them is a vmap over states."""

    learning_rate: PyTree
    discount: PyTree
    trace_decay: PyTree
    epsilon_start: PyTree
    epsilon_end: PyTree
    epsilon_fraction: PyTree


@record
class PQNState:
    """State of PQN.

    Attributes:
        params: parameters of the Q-network.
        optimizer: moments of rectified Adam.
        acting: state of the environments.
        hyperparams: traced settings.
        key: base PRNG key.
        num_updates: updates done, int32 scalar.
    """

    params: PyTree
    optimizer: PyTree
    acting: ActingState
    hyperparams: PQNHyperparams
    key: PyTree
    num_updates: PyTree


class _Step(NamedTuple):
    """Output of each step of the rollout, stacked to `[T, N, ...]`."""

    observations: PyTree
    actions: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    is_done: jax.Array
    values: jax.Array
    final_values: jax.Array


class _Batch(NamedTuple):
    """Inputs of the loss, leaves `[N * T, ...]`."""

    observations: PyTree
    actions: jax.Array
    targets: jax.Array


def make_pqn(config: PQNConfig, env: Any, env_params: Any) -> EnvironmentLearner:
    """PQN in an environment with discrete actions.

    Args:
        config: settings; those in `PQNHyperparams` become part of the state.
        env: any gymnax environment.
        env_params: an example of its parameters, for the spaces.

    Raises:
        InputError: the action space is not discrete, or the observation space fits no network.
    """
    q_function = make_q_function(config.trunk, env, env_params, is_dueling=False)
    optimizer = _make_optimizer(config)
    act, sample = make_acts(q_function, lambda state: state.params, lambda state: _epsilon(config, state))

    def init(key: jax.Array, env_params: Any) -> PQNState:
        params_key, reset_key, state_key = jax.random.split(key, 3)
        params = q_function.init(params_key)
        names = PQNHyperparams.__dataclass_fields__
        return PQNState(
            params=params,
            optimizer=optimizer.init(params),
            acting=start_acting(env, reset_key, config.num_envs, env_params),
            hyperparams=PQNHyperparams(**{name: jnp.asarray(getattr(config, name), jnp.float32) for name in names}),
            key=state_key,
            num_updates=jnp.zeros((), jnp.int32),
        )

    def update(state: PQNState, env_params: Any) -> tuple[PQNState, Metrics]:
        act_key, learn_key = jax.random.split(jax.random.fold_in(state.key, state.num_updates))
        epsilon = _epsilon(config, state)
        acting, batch = _collect(config, env, q_function, state, env_params, epsilon, act_key)
        params, opt_state, metrics = _learn(config, q_function, optimizer, state, batch, learn_key)
        acting, episode_metrics = take_episode_metrics(acting)
        new = replace(
            state, params=params, optimizer=opt_state, acting=acting, num_updates=next_count(state.num_updates)
        )
        return new, metrics | episode_metrics | {"policy/epsilon": epsilon}

    return EnvironmentLearner(
        init=init,
        update=update,
        act=act,
        sample=sample,
        init_memory=lambda num_envs: None,
        steps_per_update=config.batch_size,
        batch_axes=lambda state: replace(fill_axes(state), acting=fill_axes(state.acting, 0)),
    )


def lambda_targets(
    rewards: jax.Array,
    terminated: jax.Array,
    is_done: jax.Array,
    values: jax.Array,
    final_values: jax.Array,
    last_values: jax.Array,
    hyperparams: PQNHyperparams,
) -> jax.Array:
    """Lambda-returns of a rollout, `[T, N]`.

    Step t bootstraps from the observation of step t + 1, the last step from `last_values`, and a step at which a time
    limit cut the episode from the final observation.

    Args:
        rewards: r_t, `[T, N]`.
        terminated: whether the episode terminated, bool `[T, N]`.
        is_done: whether it terminated or was truncated, bool `[T, N]`.
        values: max_a Q(s_t, a), `[T, N]`.
        final_values: max_a Q(final observation, a) where truncated, `[T, N]`.
        last_values: max_a Q(s_T, a), `[N]`.
        hyperparams: gamma and lambda.
    """
    following = jnp.concatenate([values[1:], last_values[None]])
    lambda_returns = returns.lambda_returns(
        rewards.T,
        jnp.where(is_done, final_values, following).T,
        jnp.where(terminated, 0.0, hyperparams.discount).T,
        jnp.where(is_done, 0.0, hyperparams.trace_decay).T,
        jnp.ones_like(rewards.T),
    )
    return jax.lax.stop_gradient(lambda_returns.T)


def _make_optimizer(config: PQNConfig) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    return optax.chain(clip, optax.scale_by_radam())


def _epsilon(config: PQNConfig, state: PQNState) -> jax.Array:
    return exploration(state.hyperparams, run_share(state.num_updates, config.anneal_updates))


def _collect(
    config: PQNConfig,
    env: Any,
    q_function: QFunction,
    state: PQNState,
    env_params: Any,
    epsilon: jax.Array,
    key: jax.Array,
) -> tuple[ActingState, _Batch]:
    """Act for T steps and compute their regression targets."""
    explore_key, env_key = jax.random.split(key)

    def step(acting: ActingState, randomness: tuple[jax.Array, jax.Array]) -> tuple[ActingState, _Step]:
        uniforms, step_key = randomness
        mask = action_mask_of(acting.observations)
        q_values = q_function.apply(state.params, acting.observations)
        actions = epsilon_greedy_actions(q_values, uniforms, epsilon, mask)
        stepped, result = step_acting(env, step_key, acting, actions, env_params)
        record = _Step(
            observations=acting.observations,
            actions=actions,
            rewards=result.rewards,
            terminated=result.terminated,
            is_done=result.terminated | result.truncated,
            values=q_losses.greedy_values(q_values, mask),
            final_values=_final_values(q_function, state.params, result),
        )
        return stepped, record

    # Drawn at once: a draw per step costs as much as the step.
    uniforms = jax.random.uniform(explore_key, (config.num_steps, config.num_envs), jnp.float32)
    randomness = uniforms, jax.random.split(env_key, config.num_steps)
    acting, steps = jax.lax.scan(step, state.acting, randomness)
    targets = lambda_targets(
        steps.rewards * config.reward_scale,
        steps.terminated,
        steps.is_done,
        steps.values,
        steps.final_values,
        _values(q_function, state.params, acting.observations),
        state.hyperparams,
    )
    batch = _Batch(steps.observations, steps.actions, targets)
    return acting, jax.tree.map(lambda x: x.reshape(config.batch_size, *x.shape[2:]), batch)


def _values(q_function: QFunction, params: PyTree, observations: PyTree) -> jax.Array:
    return q_losses.greedy_values(q_function.apply(params, observations), action_mask_of(observations))


def _final_values(q_function: QFunction, params: PyTree, result: StepResult) -> jax.Array:
    """max_a Q(final observation, a) where a time limit cut the episode, 0 elsewhere."""
    is_cut = result.truncated & ~result.terminated
    return where_any(is_cut, lambda: jnp.where(is_cut, _values(q_function, params, result.final_observations), 0.0))


def _learn(
    config: PQNConfig,
    q_function: QFunction,
    optimizer: optax.GradientTransformation,
    state: PQNState,
    batch: _Batch,
    key: jax.Array,
) -> tuple[PyTree, PyTree, Metrics]:
    """Epochs of minibatches."""
    rate = scheduled(
        state.hyperparams.learning_rate, config.learning_rate_schedule, state.num_updates, config.anneal_updates
    )

    def loss(params: PyTree, part: _Batch) -> tuple[jax.Array, Metrics]:
        predictions = q_losses.values_of_actions(q_function.apply(params, part.observations), part.actions)
        td_loss = jnp.mean(q_losses.td_losses(predictions, part.targets))
        return td_loss, {"loss/td": td_loss, "value/q_mean": jnp.mean(predictions)}

    (params, opt_state), stacked = run_epochs(
        loss,
        (state.params, state.optimizer),
        batch,
        key,
        optimizer=optimizer,
        learning_rate=rate,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
    metrics = mean_metrics(stacked) | {"learning_rate": rate, "value/targets": jnp.mean(batch.targets)}
    return params, opt_state, metrics
