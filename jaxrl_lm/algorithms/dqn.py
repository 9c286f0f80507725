"""Deep Q-networks with optional extensions: double, dueling, n-step returns, prioritised replay.

Each gradient step draws transitions from a replay memory and regresses Q(s, a) on

    y = R + D * max_a' Q_target(s', a')      (double: Q chooses a', Q_target evaluates it)

where R and D cover up to n steps within the episode.

Reference: Mnih et al., 2015, Human-level control through deep reinforcement learning; Hessel et al., 2018, Rainbow:
Combining Improvements in Deep Reinforcement Learning.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_lm import checks
from jaxrl_lm.algorithms.optimizers import clipped_adam
from jaxrl_lm.algorithms.q_networks import (
    QFunction,
    action_mask_of,
    check_q_learner,
    epsilon_greedy_actions,
    make_acts,
    make_q_function,
)
from jaxrl_lm.algorithms.replay import (
    Replay,
    ReplayConfig,
    Step,
    Transitions,
    add,
    blank_step,
    init_replay,
    priorities_of,
    sample,
    set_priorities,
)
from jaxrl_lm.algorithms.schedules import exploration, has_constant_exploration, linear_schedule, run_share
from jaxrl_lm.core import masked, q_losses
from jaxrl_lm.core.counters import WRAPPED_COUNT, next_count
from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.acting import ActingState, fill_axes, start_acting, step_acting, take_episode_metrics
from jaxrl_lm.types import EnvironmentLearner, Metrics, PyTree

TDLossKind = Literal["squared", "huber"]


def _default_trunk() -> TrunkConfig:
    return TrunkConfig(hidden_sizes=(120, 84), activation="relu")


@dataclass(frozen=True, kw_only=True)
class DQNConfig:
    """Settings of DQN; the defaults are CleanRL's for CartPole, with ten environments instead of one.

    Attributes:
        num_envs: number of parallel environments.
        steps_per_update: steps of each environment per `update`.
        train_every: steps of each environment between training rounds; must divide `steps_per_update`.
        num_gradient_steps: gradient steps per training round.
        batch_size: transitions per gradient step.
        learning_starts: environment steps before the first training round.
        buffer_size: capacity of the replay memory, in transitions.
        num_steps: n of the n-step targets.
        is_double: choose the next action with the online network (double DQN).
        is_dueling: use separate value and advantage streams (dueling DQN).
        is_prioritized: sample transitions in proportion to their last TD error.
        priority_exponent: alpha of prioritised sampling.
        importance_exponent: initial beta of the importance weights.
        importance_fraction: share of the run over which beta rises to 1.
        discount: gamma.
        learning_rate: Adam's step size.
        max_grad_norm: largest global norm of the gradient; 0 disables clipping.
        td_loss: half the "squared" error, or "huber", which is linear beyond `huber_delta`. Huber fits rewards clipped
            to [-1, 1]. With returns much larger than delta, values follow the median of their targets instead of the
            mean: rare episode ends are ignored and values grow without bound (CartPole with 1.0).
        huber_delta: error beyond which the Huber loss is linear, in units of return.
        target_every: gradient steps between updates of the target network.
        target_rate: step of the target network towards the online network; 1 copies it.
        epsilon_start: initial share of random actions.
        epsilon_end: share of random actions after `epsilon_fraction` of the run.
        epsilon_fraction: share of the run over which epsilon falls linearly; 0 uses `epsilon_end` throughout.
        anneal_updates: length of the run in updates, for epsilon and beta; None lets the trainer fill it in
            (`make_dqn` itself treats None as 0: final values throughout).
        trunk: body of the network.
    """

    num_envs: int = 10
    steps_per_update: int = 100
    train_every: int = 1
    num_gradient_steps: int = 1
    batch_size: int = 128
    learning_starts: int = 10_000
    buffer_size: int = 10_000
    num_steps: int = 1
    is_double: bool = False
    is_dueling: bool = False
    is_prioritized: bool = False
    priority_exponent: float = 0.6
    importance_exponent: float = 0.4
    importance_fraction: float = 1.0
    discount: float = 0.99
    learning_rate: float = 2.5e-4
    max_grad_norm: float = 0.0
    td_loss: TDLossKind = "squared"
    huber_delta: float = 1.0
    target_every: int = 50
    target_rate: float = 1.0
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_fraction: float = 0.5
    anneal_updates: int | None = None
    trunk: TrunkConfig = field(default_factory=_default_trunk)

    def __post_init__(self) -> None:
        check_q_learner(self, "target_rate", "importance_exponent", "importance_fraction")
        checks.at_least(self, 1, "steps_per_update", "train_every", "num_gradient_steps", "batch_size", "target_every")
        checks.at_least(self, 0, "max_grad_norm")
        checks.above(self, 0, "learning_rate", "huber_delta", "target_rate")
        checks.finite(self, "learning_rate")
        checks.one_of(self, td_loss=TDLossKind)
        if self.steps_per_update % self.train_every:
            raise InputError(
                f"train_every={self.train_every} does not divide steps_per_update={self.steps_per_update}; "
                "choose a divisor"
            )
        if max(self.num_envs * self.steps_per_update, self.learning_starts) > WRAPPED_COUNT:
            raise InputError(
                f"steps_per_update={self.steps_per_update} with num_envs={self.num_envs}, and "
                f"learning_starts={self.learning_starts}, must each be at most {WRAPPED_COUNT} steps; choose fewer"
            )
        self.replay.num_slots(self.num_envs)
        smallest = max(self.batch_size, self.num_steps * self.num_envs)
        if self.learning_starts < smallest:
            raise InputError(
                f"learning_starts={self.learning_starts} must be at least {smallest}: one batch_size, and num_steps "
                "in every environment"
            )

    @property
    def has_schedule(self) -> bool:
        """Whether epsilon or beta changes during a run."""
        has_constant_beta = self.importance_exponent == 1 or not self.importance_fraction
        return not has_constant_exploration(self) or (self.is_prioritized and not has_constant_beta)

    @property
    def replay(self) -> ReplayConfig:
        """The memory's part."""
        return ReplayConfig(
            buffer_size=self.buffer_size,
            num_steps=self.num_steps,
            is_prioritized=self.is_prioritized,
            priority_exponent=self.priority_exponent,
        )


@record
class DQNHyperparams:
    """Settings that are traced: a sweep over them is a vmap over states."""

    learning_rate: PyTree
    discount: PyTree
    epsilon_start: PyTree
    epsilon_end: PyTree
    epsilon_fraction: PyTree


@record
class QLearnerState:
    """State changed by gradient steps.

    Attributes:
        params: parameters of the Q-network.
        target_params: parameters of the target network.
        optimizer: Adam's moments.
        num_gradient_steps: gradient steps made, int32 scalar.
    """

    params: PyTree
    target_params: PyTree
    optimizer: PyTree
    num_gradient_steps: PyTree


@record
class DQNState:
    """State of DQN.

    Attributes:
        learner: networks and optimizer.
        replay: replay memory.
        acting: state of the environments.
        hyperparams: traced settings.
        key: base PRNG key.
        num_updates: updates done, int32 scalar.
    """

    learner: QLearnerState
    replay: Replay
    acting: ActingState
    hyperparams: DQNHyperparams
    key: PyTree
    num_updates: PyTree


class _Parts(NamedTuple):
    """Static parts that all functions of an update use."""

    config: DQNConfig
    env: Any
    q_function: QFunction
    optimizer: optax.GradientTransformation


class _ActInput(NamedTuple):
    """Inputs of one step of all environments."""

    uniforms: jax.Array
    key: jax.Array
    epsilon: jax.Array


class _RoundInput(NamedTuple):
    """Inputs of a round of acting and training; leaves of `acting` are `[train_every, ...]`."""

    acting: _ActInput
    learn_keys: jax.Array
    is_learning: jax.Array
    beta: jax.Array


def make_dqn(config: DQNConfig, env: Any, env_params: Any) -> EnvironmentLearner:
    """DQN in an environment with discrete actions.

    Args:
        config: settings; those in `DQNHyperparams` become part of the state.
        env: any gymnax environment.
        env_params: an example of its parameters, for the spaces.

    Raises:
        InputError: the action space is not discrete, or the observation space fits no network.
    """
    q_function = make_q_function(config.trunk, env, env_params, is_dueling=config.is_dueling)
    optimizer = clipped_adam("pytorch", epsilon=1e-8, max_grad_norm=config.max_grad_norm)
    parts = _Parts(config, env, q_function, optimizer)
    act, sample_actions = make_acts(
        q_function,
        lambda state: state.learner.params,
        lambda state: exploration(state.hyperparams, run_share(state.num_updates, config.anneal_updates)),
    )

    def update(state: DQNState, env_params: Any) -> tuple[DQNState, Metrics]:
        inputs = _round_inputs(config, state)

        def one_round(state: DQNState, given: _RoundInput) -> tuple[DQNState, Metrics]:
            state, _ = jax.lax.scan(lambda s, x: (_act(parts, s, env_params, x), None), state, given.acting)
            return _train(parts, state, given)

        state, stacked = jax.lax.scan(one_round, state, inputs)
        is_counted = stacked.pop("is_learning")
        metrics = {name: masked.masked_mean(values, is_counted) for name, values in stacked.items()}
        acting, episode_metrics = take_episode_metrics(state.acting)
        metrics |= episode_metrics | {"policy/epsilon": inputs.acting.epsilon[-1, -1]}
        return replace(state, acting=acting, num_updates=next_count(state.num_updates)), metrics

    return EnvironmentLearner(
        init=lambda key, env_params: _init(parts, key, env_params),
        update=update,
        act=act,
        sample=sample_actions,
        init_memory=lambda num_envs: None,
        steps_per_update=config.num_envs * config.steps_per_update,
        batch_axes=_batch_axes,
    )


def _batch_axes(state: DQNState) -> DQNState:
    axes = fill_axes(state)
    replay = replace(axes.replay, steps=fill_axes(state.replay.steps, 1))
    return replace(axes, acting=fill_axes(state.acting, 0), replay=replay)


def _init(parts: _Parts, key: jax.Array, env_params: Any) -> DQNState:
    config = parts.config
    params_key, reset_key, state_key = jax.random.split(key, 3)
    params = parts.q_function.init(params_key)
    acting = start_acting(parts.env, reset_key, config.num_envs, env_params)
    example = blank_step(acting.observations, config.num_envs)
    learner = QLearnerState(
        params=params,
        # A buffer that appears twice in a state cannot be donated.
        target_params=jax.tree.map(jnp.copy, params),
        optimizer=parts.optimizer.init(params),
        num_gradient_steps=jnp.zeros((), jnp.int32),
    )
    names = DQNHyperparams.__dataclass_fields__
    return DQNState(
        learner=learner,
        replay=init_replay(config.replay, example),
        acting=acting,
        hyperparams=DQNHyperparams(**{name: jnp.asarray(getattr(config, name), jnp.float32) for name in names}),
        key=state_key,
        num_updates=jnp.zeros((), jnp.int32),
    )


def _round_inputs(config: DQNConfig, state: DQNState) -> _RoundInput:
    """Inputs of all rounds, leaves `[rounds, ...]`; keys are drawn at once, as a draw costs as much as a step."""
    explore_key, env_key, learn_key = jax.random.split(jax.random.fold_in(state.key, state.num_updates), 3)
    shape = config.steps_per_update // config.train_every, config.train_every
    # Steps of each environment in this update, and the run's steps before learning starts; a count of all steps of the
    # run would overflow.
    steps = jnp.arange(config.steps_per_update, dtype=jnp.int32).reshape(shape)
    num_waiting = -(-config.learning_starts // config.num_envs)
    updates_before = jnp.minimum(state.num_updates, num_waiting // config.steps_per_update + 1)
    is_learning = updates_before * config.steps_per_update + steps[:, -1] + 1 >= num_waiting
    done = state.num_updates.astype(jnp.float32) + steps.astype(jnp.float32) / config.steps_per_update
    progress = run_share(done, config.anneal_updates)
    acting = _ActInput(
        uniforms=jax.random.uniform(explore_key, (*shape, config.num_envs), jnp.float32),
        key=jax.random.split(env_key, shape),
        epsilon=exploration(state.hyperparams, progress),
    )
    return _RoundInput(
        acting=acting,
        learn_keys=jax.random.split(learn_key, (shape[0], config.num_gradient_steps)),
        is_learning=is_learning,
        beta=linear_schedule(progress[:, -1], config.importance_exponent, 1.0, config.importance_fraction),
    )


def _act(parts: _Parts, state: DQNState, env_params: Any, given: _ActInput) -> DQNState:
    """Step all environments once and store the transitions."""
    observations = state.acting.observations
    q_values = parts.q_function.apply(state.learner.params, observations)
    actions = epsilon_greedy_actions(q_values, given.uniforms, given.epsilon, action_mask_of(observations))
    acting, result = step_acting(parts.env, given.key, state.acting, actions, env_params)
    step = Step(
        observations=observations,
        actions=actions,
        rewards=result.rewards,
        terminated=result.terminated,
        truncated=result.truncated,
        next_observations=result.final_observations,
    )
    return replace(state, replay=add(parts.config.replay, state.replay, step), acting=acting)


def _train(parts: _Parts, state: DQNState, given: _RoundInput) -> tuple[DQNState, Metrics]:
    """Gradient steps; before `learning_starts` they are computed but change nothing."""
    config = parts.config

    def step(carry: tuple[QLearnerState, Replay], key: jax.Array) -> tuple[tuple[QLearnerState, Replay], Metrics]:
        learner, replay = carry
        batch = sample(config.replay, replay, key, config.batch_size, state.hyperparams.discount)
        new, errors, metrics = _gradient_step(parts, learner, batch, state.hyperparams, given.beta)
        learner = jax.tree.map(lambda after, before: jnp.where(given.is_learning, after, before), new, learner)
        if config.is_prioritized:
            priorities = jnp.where(given.is_learning, priorities_of(config.replay, errors), batch.priorities)
            replay = set_priorities(replay, batch.indices, priorities)
        return (learner, replay), metrics | {"is_learning": given.is_learning}

    (learner, replay), metrics = jax.lax.scan(step, (state.learner, state.replay), given.learn_keys)
    return replace(state, learner=learner, replay=replay), metrics


def _gradient_step(
    parts: _Parts, learner: QLearnerState, batch: Transitions, hyperparams: DQNHyperparams, beta: jax.Array
) -> tuple[QLearnerState, jax.Array, Metrics]:
    config = parts.config
    targets = _targets(parts, learner, batch)
    huber_delta = config.huber_delta if config.td_loss == "huber" else jnp.inf
    weights = q_losses.importance_weights(batch.priorities, beta) if config.is_prioritized else 1.0

    def loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
        predictions = q_losses.values_of_actions(parts.q_function.apply(params, batch.observations), batch.actions)
        return jnp.mean(weights * q_losses.td_losses(predictions, targets, huber_delta)), predictions

    (td_loss, predictions), grads = jax.value_and_grad(loss, has_aux=True)(learner.params)
    direction, opt_state = parts.optimizer.update(grads, learner.optimizer, learner.params)
    params = jax.tree.map(lambda p, d: p - hyperparams.learning_rate * d, learner.params, direction)
    count = next_count(learner.num_gradient_steps)
    rate = jnp.where(count % config.target_every == 0, config.target_rate, 0.0)
    new = QLearnerState(
        params=params,
        target_params=jax.tree.map(lambda t, p: (1.0 - rate) * t + rate * p, learner.target_params, params),
        optimizer=opt_state,
        num_gradient_steps=count,
    )
    metrics = {
        "loss/td": td_loss,
        "loss/grad_norm": optax.tree.norm(grads),
        "value/q_mean": jnp.mean(predictions),
        "value/targets": jnp.mean(targets),
    }
    return new, predictions - targets, metrics


def _targets(parts: _Parts, learner: QLearnerState, batch: Transitions) -> jax.Array:
    mask = action_mask_of(batch.next_observations)
    q_values = parts.q_function.apply(learner.target_params, batch.next_observations)
    if not parts.config.is_double:
        return q_losses.q_learning_targets(batch.rewards, batch.discounts, q_values, mask)
    online = parts.q_function.apply(learner.params, batch.next_observations)
    return q_losses.double_q_targets(batch.rewards, batch.discounts, q_values, online, mask)
