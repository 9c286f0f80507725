"""Deep Q-networks with the usual improvements as switches: double, dueling, n-step, prioritised.

Each gradient step draws transitions from a replay memory and regresses Q(s, a) on

    y = R + D * max_a' Q_target(s', a')      (double: the maximum is chosen by Q, valued by Q_target)

with R and D of up to n steps that stay within the episode.

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
    make_greedy_act,
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
from jaxrl_lm.algorithms.schedules import exploration, linear_schedule, run_share
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
    """Settings of DQN; the defaults are those of cleanrl for CartPole, with ten environments for one.

    Attributes:
        num_envs: environments stepped together.
        steps_per_update: steps of each environment in one `update`.
        train_every: steps of each environment between rounds of training; must divide `steps_per_update`.
        num_gradient_steps: gradient steps of a round.
        batch_size: transitions of a gradient step.
        learning_starts: environment steps before the first round.
        buffer_size: transitions kept.
        num_steps: n of n-step targets.
        is_double: choose the next action by the online network.
        is_dueling: value and advantage streams.
        is_prioritized: draw transitions by their last error.
        priority_exponent: alpha of the draw.
        importance_exponent: beta of the correction at the first step.
        importance_fraction: share of the run over which beta rises to 1.
        discount: gamma.
        learning_rate: Adam's step size.
        max_grad_norm: longest gradient, by global norm; 0 leaves gradients as they are.
        td_loss: half the "squared" error, or "huber", which is linear beyond `huber_delta`. Where returns are much
            larger than delta, values follow the median of their targets instead of the mean: ends of episodes are rare,
            drop out, and values grow without bound (CartPole with 1.0). It fits rewards clipped to [-1, 1].
        huber_delta: error from which Huber's loss grows linearly, in units of return.
        target_every: gradient steps between updates of the target network.
        target_rate: how far the target network then moves to the online one; 1 copies it.
        epsilon_start: share of random actions at the first step.
        epsilon_end: share of random actions after `epsilon_fraction` of the run.
        epsilon_fraction: share of the run over which the share of random actions falls linearly; 0 begins at its end.
        anneal_updates: updates of the run, over which epsilon and beta change; None lets the trainer fill it in (in
            `make_dqn` alone they then begin at their end, as with 0).
        trunk: the network's body.
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
                f"steps_per_update={self.steps_per_update} of num_envs={self.num_envs} environments and "
                f"learning_starts={self.learning_starts} must be at most {WRAPPED_COUNT} steps; choose fewer"
            )
        self.replay.num_slots(self.num_envs)
        smallest = max(self.batch_size, self.num_steps * self.num_envs)
        if self.learning_starts < smallest:
            raise InputError(
                f"learning_starts={self.learning_starts} must be at least {smallest}: the batch_size, and num_steps "
                "of every environment"
            )

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
    """What gradient steps change.

    Attributes:
        params: of the Q-network.
        target_params: of the target network.
        optimizer: Adam's moments.
        num_gradient_steps: gradient steps made, int32 scalar.
    """

    params: PyTree
    target_params: PyTree
    optimizer: PyTree
    num_gradient_steps: PyTree


@record
class DQNState:
    """Everything an update changes.

    Attributes:
        learner: networks and optimizer.
        replay: the memory.
        acting: the environments.
        hyperparams: traced settings.
        key: base of all randomness.
        num_updates: updates made, int32 scalar.
    """

    learner: QLearnerState
    replay: Replay
    acting: ActingState
    hyperparams: DQNHyperparams
    key: PyTree
    num_updates: PyTree


class _Parts(NamedTuple):
    """What the functions of an update share."""

    config: DQNConfig
    env: Any
    q_function: QFunction
    optimizer: optax.GradientTransformation


class _ActInput(NamedTuple):
    """What one step of all environments needs."""

    uniforms: jax.Array
    key: jax.Array
    epsilon: jax.Array


class _RoundInput(NamedTuple):
    """What a round of acting and training needs; leaves of `acting` `[train_every, ...]`."""

    acting: _ActInput
    learn_keys: jax.Array
    is_learning: jax.Array
    beta: jax.Array


def make_dqn(config: DQNConfig, env: Any, env_params: Any) -> EnvironmentLearner:
    """DQN in an environment with discrete actions.

    Args:
        config: static settings; those in `DQNHyperparams` become part of the state.
        env: any gymnax environment.
        env_params: an example of its parameters, for the spaces.

    Raises:
        InputError: the action space is not discrete, or the observation space fits no network.
    """
    q_function = make_q_function(config.trunk, env, env_params, is_dueling=config.is_dueling)
    optimizer = clipped_adam("pytorch", epsilon=1e-8, max_grad_norm=config.max_grad_norm)
    parts = _Parts(config, env, q_function, optimizer)

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
        act=make_greedy_act(q_function, lambda state: state.learner.params),
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
        # A buffer that stands twice in a state cannot be donated.
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
    """What the rounds of an update need, leaves `[rounds, ...]`; drawn at once, as a draw costs as much as a step."""
    explore_key, env_key, learn_key = jax.random.split(jax.random.fold_in(state.key, state.num_updates), 3)
    shape = config.steps_per_update // config.train_every, config.train_every
    # Steps of each environment in this update, and those of the whole run that learning waits for; a count of all steps
    # of the run would overflow.
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
    """One step of all environments, into the memory."""
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
    """Gradient steps; until learning starts, they are computed and change nothing."""
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
