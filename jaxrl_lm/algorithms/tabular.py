"""Q-learning, double Q-learning, SARSA, expected SARSA and Watkins's Q(lambda) on a table.

All environments of a learner share one table. If several of them visit the same entry in one step, the entry moves
towards the mean of their targets: more environments reduce the noise of a step without affecting its stability. CPU
results are bit-for-bit reproducible; GPUs add the errors of an entry in any order unless
`XLA_FLAGS=--xla_gpu_deterministic_ops=true` is set.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm import checks
from jaxrl_lm.algorithms.schedules import exploration, has_constant_exploration, run_share, visit_schedule
from jaxrl_lm.core import q_losses
from jaxrl_lm.core.counters import WRAPPED_COUNT, next_count
from jaxrl_lm.core.records import record
from jaxrl_lm.envs.stepping import MaskedObservation
from jaxrl_lm.errors import InputError
from jaxrl_lm.rollouts.acting import ActingState, fill_axes, start_acting, step_acting, take_episode_metrics
from jaxrl_lm.spaces import is_discrete
from jaxrl_lm.types import Act, EnvironmentLearner, Metrics, PyTree

TabularKind = Literal["q-learning", "double-q", "sarsa", "expected-sarsa", "q-lambda"]

# Visit counts saturate here, so that the int32 count of an entry cannot overflow within one update.
MAX_VISITS = WRAPPED_COUNT


@dataclass(frozen=True, kw_only=True)
class TabularConfig:
    """Settings of the tabular algorithms; the defaults are those of the article's maze.

    Attributes:
        kind: algorithm, which defines the targets.
        learning_rate: step size; with a visit_power, the step size at the first visit of an entry.
        visit_power: the step size is learning_rate / visits^visit_power; 0 keeps it constant, 1 with learning_rate=1
            averages all targets.
        discount: gamma.
        epsilon_start: initial share of random actions.
        epsilon_end: share of random actions after `epsilon_fraction` of the run.
        epsilon_fraction: share of the run over which epsilon falls linearly, update by update; 0 uses `epsilon_end`
            throughout.
        anneal_updates: length of the run in updates, for epsilon; None lets the trainer fill it in (`make_tabular`
            itself treats None as 0: the final epsilon throughout).
        trace_decay: lambda of q-lambda; not used by the others.
        initial_value: initial value of every entry; a high value encourages exploration.
        num_envs: number of parallel environments.
        num_steps: steps of each environment per update; the table is updated at every step.
    """

    kind: TabularKind = "q-learning"
    learning_rate: float = 0.1
    visit_power: float = 0.0
    discount: float = 0.9
    epsilon_start: float = 0.1
    epsilon_end: float = 0.1
    epsilon_fraction: float = 0.5
    anneal_updates: int | None = None
    trace_decay: float = 0.9
    initial_value: float = 0.0
    num_envs: int = 1
    num_steps: int = 128

    def __post_init__(self) -> None:
        checks.one_of(self, kind=TabularKind)
        checks.above(self, 0, "learning_rate")
        checks.between(self, 0, 1, "learning_rate", why="a larger step overshoots its target")
        checks.finite(self, "initial_value")
        names = ("discount", "epsilon_start", "epsilon_end", "epsilon_fraction", "visit_power", "trace_decay")
        checks.between(self, 0, 1, *names)
        checks.at_least(self, 1, "num_envs", "num_steps")
        checks.at_least(self, 0, "anneal_updates")
        if self.num_envs * self.num_steps > MAX_VISITS:
            raise InputError(
                f"num_steps={self.num_steps} with num_envs={self.num_envs} gives more than {MAX_VISITS} steps per "
                "update; choose fewer steps"
            )

    @property
    def has_schedule(self) -> bool:
        """Whether epsilon changes during a run."""
        return not has_constant_exploration(self)


@record
class TabularHyperparams:
    """Settings that are traced: a sweep over them is a vmap over states."""

    learning_rate: PyTree
    visit_power: PyTree
    discount: PyTree
    epsilon_start: PyTree
    epsilon_end: PyTree
    epsilon_fraction: PyTree
    trace_decay: PyTree


@record
class TabularState:
    """State of a tabular algorithm.

    Letters: K tables (2 for double-q, else 1), S states, A actions, B environments.

    Attributes:
        q_values: the tables, float32 `[K, S, A]`; the policy is greedy in their mean.
        visits: updates of each entry, int32 `[K, S, A]`, counted up to 2^30.
        traces: eligibility trace of each entry, float32 `[B, S, A]`; only for q-lambda, else None.
        next_actions: SARSA's next actions, int32 `[B]`; None for the others.
        acting: state of the environments; their observations index the table, int `[B]`.
        hyperparams: traced settings.
        key: base PRNG key.
        num_updates: updates done, int32 scalar.
    """

    q_values: PyTree
    visits: PyTree
    traces: PyTree
    next_actions: PyTree
    acting: ActingState
    hyperparams: TabularHyperparams
    key: PyTree
    num_updates: PyTree


def make_tabular(config: TabularConfig, env: Any, env_params: Any) -> EnvironmentLearner:
    """A tabular algorithm for an environment.

    Every step learns from `(o, a, r, o')` of each environment, where o' is the final observation at the end of an
    episode: a time limit bootstraps from it, a termination does not bootstrap. SARSA takes the next action it learned
    from (at a time limit, that action is sampled in o'). The traces of Q(lambda) are reset with every episode.

    Args:
        config: settings; those in `TabularHyperparams` become part of the state.
        env: any gymnax environment.
        env_params: an example of its parameters, for the spaces.

    Returns:
        The learner. Metrics: episode metrics, `loss/td_error` (mean absolute error), `policy/epsilon`.

    Raises:
        InputError: observations or actions are not categorical, or the observations include an action mask.

    Reference: Sutton and Barto, 2018, Reinforcement Learning: An Introduction, chapters 6 and 12.
    """
    num_states, num_actions = _table_size(env, env_params)

    def init(key: jax.Array, env_params: Any) -> TabularState:
        return _init(config, env, env_params, key, (num_states, num_actions))

    def update(state: TabularState, env_params: Any) -> tuple[TabularState, Metrics]:
        epsilon = _epsilon(config, state.hyperparams, state.num_updates)
        visits = jnp.minimum(state.visits, MAX_VISITS)

        def step(state: TabularState, key: jax.Array) -> tuple[TabularState, jax.Array]:
            return _step(config, env, env_params, state, epsilon, key)

        keys = jax.random.split(jax.random.fold_in(state.key, state.num_updates), config.num_steps)
        state, errors = jax.lax.scan(step, replace(state, visits=visits), keys)
        acting, metrics = take_episode_metrics(state.acting)
        state = replace(state, acting=acting, num_updates=next_count(state.num_updates))
        return state, metrics | {"loss/td_error": jnp.mean(errors), "policy/epsilon": epsilon}

    return EnvironmentLearner(
        init=init,
        update=update,
        act=_make_act(lambda state: jnp.zeros((), jnp.float32)),
        sample=_make_act(lambda state: _epsilon(config, state.hyperparams, state.num_updates)),
        init_memory=lambda num_envs: None,
        steps_per_update=config.num_envs * config.num_steps,
        batch_axes=_batch_axes,
    )


def _batch_axes(state: TabularState) -> TabularState:
    of_envs = {"traces": fill_axes(state.traces, 0), "next_actions": fill_axes(state.next_actions, 0)}
    return replace(fill_axes(state), acting=fill_axes(state.acting, 0), **of_envs)


def _table_size(env: Any, env_params: Any) -> tuple[int, int]:
    """Number of states and number of actions."""
    for what, space in (("observation", env.observation_space(env_params)), ("action", env.action_space(env_params))):
        if not is_discrete(space):
            raise InputError(
                f"env={env.name}: a table needs discrete spaces, but the {what} space is {space}; discretise it "
                "(binning.num_bins, binning.num_actions), or use dqn (discrete actions) or ppo"
            )
    observation, _ = jax.eval_shape(env.reset, jax.random.key(0), env_params)
    if isinstance(observation, MaskedObservation):
        raise InputError(
            f"env={env.name}: has_action_mask=True, but tabular algorithms do not use action masks; set "
            "has_action_mask=False, or use dqn or ppo"
        )
    return env.observation_space(env_params).n, env.action_space(env_params).n


def _init(config: TabularConfig, env: Any, env_params: Any, key: jax.Array, size: tuple[int, int]) -> TabularState:
    state_key, reset_key, act_key = jax.random.split(key, 3)
    acting = start_acting(env, reset_key, config.num_envs, env_params)
    shape = (2 if config.kind == "double-q" else 1, *size)
    q_values = jnp.full(shape, config.initial_value, jnp.float32)
    names = TabularHyperparams.__dataclass_fields__
    hyperparams = TabularHyperparams(**{name: jnp.asarray(getattr(config, name), jnp.float32) for name in names})
    next_actions = None
    if config.kind == "sarsa":
        epsilon = _epsilon(config, hyperparams, jnp.zeros((), jnp.int32))
        next_actions = _choose(q_values, acting.observations, epsilon, act_key)
    return TabularState(
        q_values=q_values,
        visits=jnp.zeros(shape, jnp.int32),
        traces=jnp.zeros((config.num_envs, *size), jnp.float32) if config.kind == "q-lambda" else None,
        next_actions=next_actions,
        acting=acting,
        hyperparams=hyperparams,
        key=state_key,
        num_updates=jnp.zeros((), jnp.int32),
    )


def _make_act(epsilon_of: Callable[[TabularState], jax.Array]) -> Act:
    """Epsilon-greedy actions, with an epsilon that depends on the state."""

    def act(
        state: TabularState, observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        del is_first
        return _choose(state.q_values, observations, epsilon_of(state), key), memory

    return act


def _epsilon(config: TabularConfig, hyperparams: TabularHyperparams, num_updates: jax.Array) -> jax.Array:
    return exploration(hyperparams, run_share(num_updates, config.anneal_updates))


def _choose(q_values: jax.Array, observations: jax.Array, epsilon: jax.Array, key: jax.Array) -> jax.Array:
    """Epsilon-greedy actions, int32 `[B]`; ties are broken uniformly."""
    q = jnp.mean(q_values[:, observations], axis=0)
    # One number decides whether to explore and, rescaled to [0, 1), which candidate to take.
    drawn = jax.random.uniform(key, observations.shape, jnp.float32)
    is_random = drawn < epsilon
    stretched = jnp.where(is_random, drawn / epsilon, (drawn - epsilon) / (1.0 - epsilon))
    is_candidate = q_losses.is_greedy(q) | is_random[:, None]
    num_so_far = jnp.cumsum(is_candidate, axis=-1, dtype=jnp.int32)
    rank = (stretched * num_so_far[:, -1]).astype(jnp.int32)
    # Index of the candidate with that rank: the number of actions before it.
    return jnp.sum(num_so_far <= rank[:, None], axis=-1, dtype=jnp.int32)


class _Steps(NamedTuple):
    """One step of B environments, as the table learns from it."""

    tables: jax.Array
    observations: jax.Array
    actions: jax.Array
    rewards: jax.Array
    discounts: jax.Array
    next_observations: jax.Array
    is_done: jax.Array


def _step(
    config: TabularConfig, env: Any, env_params: Any, state: TabularState, epsilon: jax.Array, key: jax.Array
) -> tuple[TabularState, jax.Array]:
    """Step every environment and learn from it; also return the mean absolute error."""
    act_key, env_key, table_key, next_key = jax.random.split(key, 4)
    actions = state.next_actions
    if actions is None:
        actions = _choose(state.q_values, state.acting.observations, epsilon, act_key)
    acting, result = step_acting(env, env_key, state.acting, actions, env_params)
    steps = _Steps(
        tables=_draw_tables(state.q_values.shape[0], actions.shape, table_key),
        observations=state.acting.observations,
        actions=actions,
        rewards=result.rewards,
        discounts=jnp.where(result.terminated, 0.0, state.hyperparams.discount),
        next_observations=result.final_observations,
        is_done=result.terminated | result.truncated,
    )
    boot_actions = None
    if config.kind == "sarsa":
        boot_actions = _choose(state.q_values, steps.next_observations, epsilon, next_key)
        first_actions = _choose(state.q_values, result.observations, epsilon, act_key)
        state = replace(state, next_actions=jnp.where(steps.is_done, first_actions, boot_actions))
    targets = _targets(config.kind, state.q_values, steps, epsilon, boot_actions)
    entries = q_losses.values_of_actions(state.q_values[steps.tables, steps.observations], actions)
    errors = targets - entries
    learn = _learn_by_traces if config.kind == "q-lambda" else _learn
    return replace(learn(state, steps, errors), acting=acting), jnp.mean(jnp.abs(errors))


def _draw_tables(num_tables: int, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Index of the table that learns from each environment, int32 `[B]`."""
    if num_tables == 1:
        return jnp.zeros(shape, jnp.int32)
    return jax.random.bernoulli(key, 0.5, shape).astype(jnp.int32)


def _targets(
    kind: TabularKind, q_values: jax.Array, steps: _Steps, epsilon: jax.Array, boot_actions: jax.Array | None
) -> jax.Array:
    q_t = q_values[steps.tables, steps.next_observations]
    if kind == "double-q":
        q_t_value = q_values[1 - steps.tables, steps.next_observations]
        return q_losses.double_q_targets(steps.rewards, steps.discounts, q_t_value, q_t)
    if kind == "expected-sarsa":
        probs_t = q_losses.epsilon_greedy_probs(q_t, epsilon)
        return q_losses.expected_sarsa_targets(steps.rewards, steps.discounts, q_t, probs_t)
    if boot_actions is not None:
        return q_losses.sarsa_targets(steps.rewards, steps.discounts, q_t, boot_actions)
    return q_losses.q_learning_targets(steps.rewards, steps.discounts, q_t)


def _learn(state: TabularState, steps: _Steps, errors: jax.Array) -> TabularState:
    """Move each visited entry towards the mean of its targets."""
    entries = (steps.tables, steps.observations, steps.actions)
    visits = state.visits.at[entries].add(1)
    num_visits, num_new = visits[entries], visits[entries] - state.visits[entries]
    hyperparams = state.hyperparams
    rates = visit_schedule(hyperparams.learning_rate, num_new, num_visits, hyperparams.visit_power)
    return replace(state, q_values=state.q_values.at[entries].add(rates * errors / num_new), visits=visits)


def _learn_by_traces(state: TabularState, steps: _Steps, errors: jax.Array) -> TabularState:
    """Move each entry by the mean of the errors, weighted by its eligibility if that sums to more than 1."""
    hyperparams, (q_values,) = state.hyperparams, state.q_values
    num_envs = jnp.arange(errors.shape[0])
    is_greedy = q_losses.is_greedy(q_values[steps.observations])[num_envs, steps.actions]
    decay = jnp.where(is_greedy, hyperparams.discount * hyperparams.trace_decay, 0.0)
    traces = q_losses.replacing_traces(state.traces, steps.observations, steps.actions, decay)
    visits = state.visits.at[0, steps.observations, steps.actions].add(1)
    weights = jnp.maximum(jnp.sum(traces, axis=0), 1.0)
    rates = visit_schedule(hyperparams.learning_rate, weights, jnp.maximum(visits[0], 1), hyperparams.visit_power)
    q_values += rates * jnp.einsum("b,bsa->sa", errors, traces) / weights
    return replace(
        state, q_values=q_values[None], visits=visits, traces=jnp.where(steps.is_done[:, None, None], 0.0, traces)
    )
