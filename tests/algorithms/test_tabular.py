"""Tabular learners against a loop over steps, exact values, and worlds small enough to work by hand."""

from dataclasses import fields, replace
from functools import cache
from typing import Any, get_args

import chex
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces

from jaxrl_lm.algorithms.tabular import MAX_VISITS, TabularConfig, TabularHyperparams, TabularKind, make_tabular
from jaxrl_lm.envs.chain import ChainMaze, optimal_values
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import EnvironmentLearner
from tests.algorithms.fixtures import assert_trees_close, largest_difference
from tests.algorithms.tabular_fixtures import GAMMA, NUM_ACTIONS, NUM_STATES, LoopLearner, Prizes, exact_q

KINDS = get_args(TabularKind)
KINDS_OF_MAX = ("q-learning", "q-lambda")
KEY, OTHER_KEY = jax.random.split(jax.random.key(3))
CHAIN = ChainMaze()
every_kind = pytest.mark.parametrize("kind", KINDS)


ENDLESS = Prizes(num_groups=1, num_actions=NUM_ACTIONS, is_endless=True)


@cache
def _build(config: TabularConfig, env: Any) -> tuple[EnvironmentLearner, Any, Any]:
    learner = make_tabular(config, env, env.default_params)
    return learner, jax.jit(learner.init), jax.jit(learner.update, donate_argnums=0)


def build(config: TabularConfig, env: Any = CHAIN) -> tuple[EnvironmentLearner, Any, Any]:
    """A learner, its `init` and its compiled `update`, the state donated as the trainers do.

    Configurations that differ in traced settings alone share one program.
    """
    traced = {f.name: getattr(config, f.name) for f in fields(TabularHyperparams)}
    shared = replace(config, **{f.name: f.default for f in fields(TabularConfig) if f.name in traced})
    learner, compiled_init, update = _build(replace(shared, initial_value=0.0), env)

    def init(key: jax.Array, params: Any) -> Any:
        state = compiled_init(key, params)
        hyperparams = TabularHyperparams(**{name: jnp.float32(value) for name, value in traced.items()})
        return replace(state, q_values=state.q_values + config.initial_value, hyperparams=hyperparams)

    return learner, init, update


def run(
    config: TabularConfig, env: Any = CHAIN, *, num_updates: int = 1, max_steps: int = 100, key: jax.Array = KEY
) -> tuple[Any, dict[str, jax.Array]]:
    _, init, update = build(config, env)
    params, metrics = environment.EnvParams(max_steps_in_episode=max_steps), {}
    state = init(key, params)
    for _ in range(num_updates):
        state, metrics = update(state, params)
    return state, metrics


@every_kind
@pytest.mark.parametrize("visit_power", [0.0, 0.7])
def test_every_step_equals_the_loop(kind, visit_power):
    """Many exploratory steps and time limits; what was done is read off the visits."""
    config = TabularConfig(kind=kind, learning_rate=0.5, epsilon_end=0.4, visit_power=visit_power, num_steps=1)
    # A time limit draws an action of SARSA's that no record keeps, so SARSA is checked up to its first.
    max_steps = 100 if kind == "sarsa" else 9
    params = environment.EnvParams(max_steps_in_episode=max_steps)
    _, init, update = build(config)
    state = init(KEY, params)
    loop, time, ends_seen = LoopLearner(config, state.q_values.shape[0]), 0, []
    for _ in range(300):
        visits, planned, here = np.asarray(state.visits), state.next_actions, int(state.acting.observations[0])
        planned = None if planned is None else int(planned[0])
        state, _ = update(state, params)
        ((table, at, action),) = np.argwhere(np.asarray(state.visits) - visits)
        after, time = int(np.clip(at + (0, 0, -1, 1)[action], 0, 5)), time + 1
        ends = "terminated" if after == 5 else "truncated" if time == max_steps else ""
        assert at == here
        assert planned in (None, action)
        next_action = -1 if planned is None else int(state.next_actions[0])
        loop.learn((table, at, action), 1.0 if after == 5 else -1.0, after, ends=ends, next_action=next_action)
        np.testing.assert_allclose(state.q_values, loop.q, rtol=1e-4, atol=1e-5)
        time = 0 if ends else time
        ends_seen.append(ends)
    assert "terminated" in ends_seen
    assert ("truncated" in ends_seen) == (kind != "sarsa")


@pytest.mark.parametrize("kind", ["q-learning", "double-q", "q-lambda", "expected-sarsa"])
def test_the_chain_is_learned_exactly(kind):
    state, _ = run(TabularConfig(kind=kind, num_steps=4000), num_updates=10)
    exact = exact_q(0.1 if kind == "expected-sarsa" else 0.0)
    error = np.abs(np.asarray(state.q_values) - exact)[np.asarray(state.visits) > 0]
    assert error.size >= 20
    assert error.max() < 0.01


def test_the_exact_values_are_those_of_the_environment():
    np.testing.assert_allclose(exact_q(0.0).max(axis=1), optimal_values(GAMMA), atol=1e-12)


def test_sarsa_stays_at_the_values_of_the_policy_that_explores():
    """On average: its targets depend on what is drawn next. Q-learning would leave them for those of greed."""
    learner = build(TabularConfig(kind="sarsa", num_steps=50))[0]
    params = CHAIN.default_params
    states = jax.jit(jax.vmap(learner.init, (0, None)))(jax.random.split(KEY, 32), params)
    states = replace(states, q_values=states.q_values + jnp.asarray(exact_q(0.1), jnp.float32))
    update = jax.jit(jax.vmap(learner.update, (0, None)))
    tables = []
    for _ in range(80):
        states, _ = update(states, params)
        tables.append(np.asarray(states.q_values[:, 0]))
    means = np.mean(tables[40:], axis=(0, 1))[:5, 3]
    np.testing.assert_allclose(means, exact_q(0.1)[:5, 3], atol=0.03)
    assert np.abs(means[0] - exact_q(0.0)[0, 3]) > 0.2


@every_kind
def test_a_time_limit_is_not_an_end(kind):
    """With reward 1 for ever, every value is 1 / (1 - gamma) = 10 although each episode is cut after 3 steps."""
    config = TabularConfig(kind=kind, learning_rate=0.5, epsilon_end=1.0, num_envs=500, num_steps=40)
    state, metrics = run(config, ENDLESS, num_updates=30, max_steps=3)
    np.testing.assert_allclose(state.q_values, 10.0, rtol=1e-4)
    assert float(metrics["episode/length"]) == 3.0
    assert float(metrics["episode/terminated"]) == 0.0


@pytest.mark.parametrize("kind", KINDS_OF_MAX)
def test_environments_that_share_an_entry_move_it_to_the_mean_of_their_targets(kind):
    _, init, update = build(TabularConfig(kind=kind, learning_rate=0.5, num_envs=40, num_steps=1), Prizes())
    params = environment.EnvParams(max_steps_in_episode=9)
    state, loop = init(KEY, params), np.zeros(3)
    for _ in range(4):
        groups, prizes = np.asarray(state.acting.observations), np.asarray(state.acting.env_states.prize, np.float64)
        state, _ = update(state, params)
        for group in range(3):
            loop[group] += 0.5 * (prizes[groups == group].mean() - loop[group])
        np.testing.assert_allclose(state.q_values[0, :, 0], loop, rtol=1e-5, atol=1e-6)


def test_power_1_with_rate_1_averages_every_prize():
    config = TabularConfig(learning_rate=1.0, visit_power=1.0, initial_value=50.0, num_envs=40, num_steps=1)
    _, init, update = build(config, Prizes())
    params = environment.EnvParams(max_steps_in_episode=9)
    state, seen = init(KEY, params), []
    for _ in range(6):
        seen.append((np.asarray(state.acting.observations), np.asarray(state.acting.env_states.prize)))
        state, _ = update(state, params)
    groups, prizes = (np.concatenate(column) for column in zip(*seen, strict=True))
    means = [prizes[groups == group].mean() for group in range(3)]
    np.testing.assert_allclose(state.q_values[0, :, 0], means, rtol=1e-4, atol=1e-5)


def test_traces_that_decay_at_once_are_q_learning():
    settings: dict[str, Any] = {"epsilon_end": 0.3, "trace_decay": 0.0, "num_steps": 1}
    one_step, traces = (run(TabularConfig(kind=kind, **settings), num_updates=200)[0] for kind in KINDS_OF_MAX)
    np.testing.assert_array_equal(one_step.q_values, traces.q_values)


def test_traces_carry_the_end_back_along_the_whole_path():
    """From 0, with rate 1 and lambda 1, one episode without detours values each of its steps by what it earned."""
    config = TabularConfig(kind="q-lambda", learning_rate=1.0, trace_decay=1.0, epsilon_end=0.0, num_steps=1)
    _, init, update = build(config)
    params = CHAIN.default_params
    state = init(KEY, params)
    right = jnp.zeros((1, NUM_STATES, NUM_ACTIONS)).at[..., :3].set(-100.0)
    state = replace(state, q_values=right)
    for _ in range(5):
        state, _ = update(state, params)
    np.testing.assert_allclose(state.q_values[0, :5, 3], optimal_values(GAMMA)[:5], rtol=1e-5)


@every_kind
def test_actions_are_epsilon_greedy_and_ties_are_broken_evenly(kind):
    """Counted from a table that learns nothing."""
    params = environment.EnvParams(max_steps_in_episode=7)
    for epsilon in (0.0, 0.4, 1.0):
        _, init, update = build(TabularConfig(kind=kind, epsilon_end=epsilon, num_envs=500, num_steps=40), ENDLESS)
        state = init(KEY, params)
        still = replace(state.hyperparams, learning_rate=jnp.zeros(()))
        state = replace(state, q_values=state.q_values + jnp.array([0.0, 1.0, 1.0, -1.0]), hyperparams=still)
        # SARSA's first actions were chosen before the table was put in: the first update is not counted.
        visits = []
        for _ in range(2):
            state, _ = update(state, params)
            visits.append(np.asarray(state.visits).sum(axis=(0, 1)))
        counts = visits[1] - visits[0]
        shares = epsilon / 4 + (1 - epsilon) * np.array([0.0, 0.5, 0.5, 0.0])
        assert counts.sum() == 20_000
        assert np.all(np.abs(counts / 20_000 - shares) <= 5 * np.sqrt(shares * (1 - shares) / 20_000))


def test_act_is_greedy_in_the_mean_of_the_tables_and_breaks_ties_evenly():
    learner, init, _ = build(TabularConfig(kind="double-q", num_steps=1))
    row = jnp.array([[[1.0, 3.0, 0.0, 2.0]], [[1.0, 0.0, 0.0, 1.0]]])  # mean 1, 1.5, 0, 1.5
    state, num = init(KEY, CHAIN.default_params), 4000
    state = replace(state, q_values=state.q_values + row)
    seen = jnp.zeros(num, jnp.int32), jnp.ones(num, bool)
    actions, memory = learner.act(state, *seen, learner.init_memory(num), KEY)
    counts = np.bincount(actions, minlength=NUM_ACTIONS)
    assert memory is None
    assert counts[[0, 2]].sum() == 0
    assert abs(counts[1] - num / 2) < 5 * np.sqrt(num) / 2


def test_epsilon_falls_over_its_steps():
    config = TabularConfig(epsilon_start=1.0, epsilon_end=0.2, epsilon_fraction=0.4, anneal_updates=10, num_steps=1)
    _, init, update = build(config)
    state, epsilons = init(KEY, CHAIN.default_params), []
    for _ in range(6):
        state, metrics = update(state, CHAIN.default_params)
        epsilons.append(float(metrics["policy/epsilon"]))
    np.testing.assert_allclose(epsilons, [1.0, 0.8, 0.6, 0.4, 0.2, 0.2], rtol=1e-5)


def test_metrics_count_episodes_and_errors():
    config = TabularConfig(num_steps=4000)
    state, metrics = run(config)
    names = {"episode/return", "episode/length", "episode/terminated", "episode/count", "loss/td_error"}
    assert metrics.keys() == names | {"policy/epsilon"}
    assert all(np.shape(metric) == () and np.isfinite(metric) for metric in metrics.values())
    share = float(metrics["episode/terminated"])  # an episode that comes to its end earns 1 instead of its last -1
    np.testing.assert_allclose(metrics["episode/return"], 2 * share - metrics["episode/length"], rtol=1e-5)
    assert build(config)[0].steps_per_update == int(np.sum(state.visits)) == 4000
    _, first = run(TabularConfig(num_steps=1))
    assert float(first["loss/td_error"]) == 1.0


def test_visits_stop_where_an_update_could_overrun_them():
    _, init, update = build(TabularConfig(num_steps=1))
    state = init(KEY, CHAIN.default_params)
    state, _ = update(replace(state, visits=jnp.full_like(state.visits, 2**31 - 1)), CHAIN.default_params)
    assert int(np.min(state.visits)) == MAX_VISITS
    assert int(np.max(state.visits)) == MAX_VISITS + 1


@every_kind
def test_the_key_alone_decides(kind):
    config = TabularConfig(kind=kind, epsilon_end=0.5, num_steps=1)
    first, again, other = (run(config, num_updates=9, key=key)[0] for key in (KEY, KEY, OTHER_KEY))
    assert_trees_close(first.q_values, again.q_values)
    assert largest_difference(first.q_values, other.q_values) > 1e-3


def test_compiled_equals_uncompiled():
    config = TabularConfig(kind="q-lambda", num_steps=1)
    (compiled, _), (learner, init, _) = run(config), build(config)
    with jax.disable_jit():
        state, _ = learner.update(init(KEY, CHAIN.default_params), CHAIN.default_params)
    assert_trees_close(compiled.q_values, state.q_values, atol=1e-6)
    np.testing.assert_array_equal(compiled.visits, state.visits)


@every_kind
def test_seeds_and_hyperparameters_vmap_in_one_trace(kind):
    learner, init, update = build(TabularConfig(kind=kind, epsilon_end=0.5, num_steps=1))
    chex.clear_trace_counter()
    swept = jax.jit(jax.vmap(chex.assert_max_traces(learner.update, n=1), (0, None)))
    params, keys, rates = CHAIN.default_params, jax.random.split(KEY, 3), jnp.array([0.1, 0.5, 1.0])

    def start(key: jax.Array, rate: jax.Array) -> Any:
        state = init(key, params)
        return replace(state, hyperparams=replace(state.hyperparams, learning_rate=rate))

    states = jax.vmap(start)(keys, rates)
    alone = [start(key, rate) for key, rate in zip(keys, rates, strict=True)]
    for _ in range(30):
        states, _ = swept(states, params)
        alone = [update(state, params)[0] for state in alone]
    for seed in range(3):
        assert_trees_close(states.q_values[seed], alone[seed].q_values, atol=1e-5)


BAD_CONFIGS = [
    ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ({"learning_rate": 1.5}, "learning_rate=1.5"),
    ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ({"discount": 1.01}, "discount=1.01"),
    ({"epsilon_start": -0.1}, "epsilon_start=-0.1"),
    ({"epsilon_end": 2.0}, "epsilon_end=2.0"),
    ({"trace_decay": float("nan")}, "trace_decay=nan"),
    ({"trace_decay": 1.5}, "trace_decay=1.5"),
    ({"visit_power": 1.5}, "visit_power=1.5"),
    ({"epsilon_fraction": -0.1}, "epsilon_fraction=-0.1"),
    ({"anneal_updates": -1}, "anneal_updates=-1"),
    ({"initial_value": float("inf")}, "initial_value=inf"),
    ({"num_envs": 0}, "num_envs=0"),
    ({"num_steps": 0}, "num_steps=0"),
    ({"num_envs": 2**20, "num_steps": 2**11}, "num_steps=2048.*fewer"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_CONFIGS, ids=[str(settings) for settings, _ in BAD_CONFIGS])
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TabularConfig(**settings)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (gymnax.make("CartPole-v1")[0], "CartPole-v1: .*observation space is Box.*binning.num_bins.*ppo"),
        (Prizes(action_box=spaces.Box(-1.0, 1.0, (1,))), "Prizes: .*action space is Box.*binning.num_bins.*ppo"),
        (Prizes(has_mask=True), "has_action_mask=True.*has_action_mask=False"),
    ],
    ids=["observations", "actions", "mask"],
)
def test_worlds_without_categories_are_refused(env, message):
    with pytest.raises(InputError, match=message):
        make_tabular(TabularConfig(), env, env.default_params)


def test_an_unknown_kind_is_refused_and_the_known_ones_are_named():
    config = TabularConfig()
    object.__setattr__(config, "kind", "td")  # in the tests, beartype would refuse it before TabularConfig does
    with pytest.raises(InputError, match=r"^kind='td' must be one of q-learning, double-q, sarsa, expected-sarsa"):
        config.__post_init__()
