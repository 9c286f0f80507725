"""DQN: probes with known values for its switches, warm-up, target network, counts and refusals."""

from dataclasses import replace

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms.dqn import DQNConfig, make_dqn
from jaxrl_lm.algorithms.q_networks import action_mask_of, epsilon_greedy_actions, make_q_function
from jaxrl_lm.core import q_losses
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from tests.algorithms import probes

GAMMA = 0.8
CONFIG = DQNConfig(
    num_envs=16,
    steps_per_update=32,
    learning_starts=128,
    batch_size=64,
    buffer_size=2048,
    discount=GAMMA,
    learning_rate=2e-3,
    target_every=20,
    epsilon_end=0.2,
    epsilon_fraction=0.25,
    anneal_updates=40,
    trunk=TrunkConfig(hidden_sizes=(32, 32), activation="relu"),
)
TINY = replace(
    CONFIG,
    num_envs=4,
    steps_per_update=4,
    train_every=2,
    num_gradient_steps=3,
    batch_size=8,
    learning_starts=24,
    buffer_size=64,
    target_every=5,
    target_rate=0.25,
    trunk=TrunkConfig(hidden_sizes=(8,)),
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "is_double": True,
            "is_dueling": True,
            "is_prioritized": True,
            "num_steps": 3,
            "td_loss": "huber",
            "huber_delta": 2.0,
            "max_grad_norm": 10.0,
        },
    ],
    ids=["plain", "double-dueling-prioritized-3-step"],
)
def test_probes_reach_their_known_values(changes):
    config = replace(CONFIG, **changes)
    env = probes.ProbeEnvironment(has_action_mask=True)
    cases = probes.PROBES + probes.MASKED_PROBES
    learner = make_dqn(config, env, env.default_params)
    states = probes.train_on_probes(learner, cases, 40, jax.random.key(0))
    q_function = make_q_function(config.trunk, env, env.default_params, is_dueling=config.is_dueling)
    for i, probe in enumerate(cases):
        state = jax.tree.map(lambda x, i=i: x[i], states)
        seen = probes.masked_observations(probe)
        values = q_losses.greedy_values(q_function.apply(state.learner.params, seen), action_mask_of(seen))
        actions, memory = learner.act(state, seen, jnp.zeros(4, bool), learner.init_memory(4), jax.random.key(0))
        assert memory is None
        # An n-step sum follows the explorer where only the best action is worth the value.
        if probe.name != "legal action" or config.num_steps == 1:
            probes.check_probe(probe, values, actions, GAMMA, 0.02)


@pytest.fixture(scope="module")
def tiny():
    """History of a tiny run: states after 0 to 6 updates, and metrics."""
    env, env_params = gymnax.make("CartPole-v1")
    learner = make_dqn(TINY, env, env_params)
    update = jax.jit(learner.update)
    states, all_metrics = [jax.jit(learner.init)(jax.random.key(3), env_params)], []
    for _ in range(6):
        state, metrics = update(states[-1], env_params)
        states.append(state)
        all_metrics.append(metrics)
    np.testing.assert_array_equal(update(states[0], env_params)[0].acting.observations, states[1].acting.observations)
    return states, all_metrics


def trees_equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))


def test_nothing_is_learned_before_the_warm_up_ends(tiny):
    states, metrics = tiny
    # An update makes 16 environment steps and two rounds; the memory reaches 24 after the second update's first round.
    assert trees_equal(states[1].learner, states[0].learner)
    assert metrics[0]["loss/td"] == 0
    assert [int(state.learner.num_gradient_steps) for state in states] == [0, 0, 6, 12, 18, 24, 30]
    assert not trees_equal(states[2].learner.params, states[1].learner.params)


def test_the_target_network_moves_a_share_of_the_way_every_so_many_gradient_steps():
    config = replace(TINY, train_every=4, num_gradient_steps=1, target_every=2, learning_starts=16)
    env, env_params = gymnax.make("CartPole-v1")
    learner = make_dqn(config, env, env_params)
    update = jax.jit(learner.update)
    state = jax.jit(learner.init)(jax.random.key(0), env_params)
    for count in range(1, 5):
        before = state.learner
        state, _ = update(state, env_params)
        after = state.learner
        assert int(after.num_gradient_steps) == count
        if count % 2:
            assert trees_equal(after.target_params, before.target_params)
        else:
            jax.tree.map(
                lambda t, p, new: np.testing.assert_allclose(new, 0.75 * t + 0.25 * p, rtol=1e-6, atol=1e-7),
                before.target_params,
                after.params,
                after.target_params,
            )


def test_the_memory_holds_every_step_and_metrics_are_those_promised(tiny):
    states, metrics = tiny
    assert (int(states[-1].replay.next_slot), int(states[-1].replay.num_filled)) == (24 % 16, 16)
    assert states[-1].replay.steps.observations.shape == (16, 4, 4)
    np.testing.assert_array_equal(states[1].replay.steps.observations[0], states[0].acting.observations)
    steps = jax.tree.map(np.asarray, states[-1].replay.steps)
    goes_on = ~(steps.terminated | steps.truncated)
    goes_on[7] = False  # slot 7 was written last; slot 8 holds an older step
    following = np.roll(steps.observations, -1, axis=0)
    np.testing.assert_array_equal(steps.next_observations[goes_on], following[goes_on])
    assert not np.array_equal(steps.next_observations[7], following[7])
    expected = {"loss/td", "loss/grad_norm", "value/q_mean", "value/targets", "policy/epsilon", "episode/return"}
    assert expected <= metrics[-1].keys()
    assert all(np.isfinite(value) for name, value in metrics[-1].items() if not name.startswith("episode/"))


def test_epsilon_greedy_explores_as_often_as_epsilon_says_and_evenly_over_legal_actions():
    uniforms = (jnp.arange(10_000) + 0.5) / 10_000
    q_values = jnp.broadcast_to(jnp.array([0.0, 5.0, 1.0, 9.0]), (10_000, 4))
    mask = jnp.broadcast_to(jnp.array([True, True, True, False]), (10_000, 4))
    counts = np.bincount(epsilon_greedy_actions(q_values, uniforms, 0.3, mask), minlength=4)
    np.testing.assert_array_equal(counts, [1000, 8000, 1000, 0])
    counts = np.bincount(epsilon_greedy_actions(q_values, uniforms, 0.4), minlength=4)
    np.testing.assert_array_equal(counts, [1000, 1000, 1000, 7000])
    assert (epsilon_greedy_actions(q_values, uniforms, 0.0) == 3).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 0),
        ("batch_size", 0),
        ("num_steps", 0),
        ("discount", 1.1),
        ("learning_rate", -1.0),
        ("target_rate", 0.0),
        ("target_rate", 1.5),
        ("target_every", 0),
        ("huber_delta", 0.0),
        ("epsilon_start", -0.5),
        ("priority_exponent", 2.0),
        ("importance_exponent", 2.0),
        ("learning_starts", 10),
    ],
)
def test_a_bad_setting_is_refused_by_name_and_value(field, value):
    with pytest.raises(InputError, match=rf"^{field}={value} must "):
        replace(CONFIG, **{field: value})


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match=r"train_every=3 does not divide steps_per_update=32"):
        replace(CONFIG, train_every=3)
    with pytest.raises(InputError, match=r"buffer_size=40 .* use at least 48"):
        replace(CONFIG, buffer_size=40, num_steps=3)


def test_continuous_actions_are_refused_and_ppo_named():
    env, env_params = gymnax.make("Pendulum-v1")
    with pytest.raises(InputError, match="choose ppo"):
        make_dqn(CONFIG, env, env_params)
