"""PQN: targets against a loop and by hand, probes with known values, and what an update promises."""

from dataclasses import replace

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.algorithms.pqn import PQNConfig, PQNHyperparams, lambda_targets, make_pqn
from jaxrl_lm.algorithms.q_networks import action_mask_of, make_q_function
from jaxrl_lm.core import q_losses
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from tests.algorithms import probes

GAMMA = 0.8
CONFIG = PQNConfig(
    num_envs=16,
    num_steps=8,
    num_epochs=2,
    num_minibatches=4,
    learning_rate=3e-3,
    discount=GAMMA,
    trace_decay=0.7,
    reward_scale=0.5,
    epsilon_end=0.0,
    epsilon_fraction=0.4,
    anneal_updates=150,
    trunk=TrunkConfig(hidden_sizes=(32,), activation="relu", layer_norm=True),
)
FLOATS = st.floats(-4, 4, width=32)
targets_jit = jax.jit(lambda_targets)


def hyperparams(discount, trace_decay):
    zero = jnp.float32(0)
    return PQNHyperparams(
        learning_rate=zero,
        discount=jnp.float32(discount),
        trace_decay=jnp.float32(trace_decay),
        epsilon_start=zero,
        epsilon_end=zero,
        epsilon_fraction=zero,
    )


def loop_targets(rewards, terminated, is_done, values, final_values, last_values, gamma, trace_decay):
    num_steps, num_envs = rewards.shape
    targets = np.zeros((num_steps, num_envs))
    for env in range(num_envs):
        for t in reversed(range(num_steps)):
            if terminated[t, env]:
                following = 0.0
            elif is_done[t, env]:
                following = final_values[t, env]
            elif t == num_steps - 1:
                following = last_values[env]
            else:
                following = (1 - trace_decay) * values[t + 1, env] + trace_decay * targets[t + 1, env]
            targets[t, env] = rewards[t, env] + gamma * following
    return targets


@given(data=st.data(), gamma=st.sampled_from([0.0, 0.5, 1.0]), trace_decay=st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=40, deadline=None)
def test_targets_equal_the_loop_at_ends_and_time_limits(data, gamma, trace_decay):
    rewards, values, final_values = data.draw(hnp.arrays(np.float32, (3, 5, 2), elements=FLOATS))
    last_values = data.draw(hnp.arrays(np.float32, 2, elements=FLOATS))
    is_done, is_own_end = data.draw(hnp.arrays(bool, (2, 5, 2)))
    arrays = rewards, is_done & is_own_end, is_done, values, final_values, last_values
    result = targets_jit(*arrays, hyperparams(gamma, trace_decay))
    np.testing.assert_allclose(result, loop_targets(*arrays, gamma, trace_decay), rtol=1e-5, atol=1e-5)


def test_the_last_step_bootstraps_from_the_observation_behind_the_rollout():
    zeros = np.zeros((2, 1), bool)
    rewards, values = np.array([[1.0], [2.0]], np.float32), np.array([[100.0], [8.0]], np.float32)
    result = lambda_targets(
        *map(jnp.asarray, (rewards, zeros, zeros, values, np.zeros((2, 1), np.float32))),
        jnp.array([16.0]),
        hyperparams(0.5, 0.5),
    )
    # G_1 = 2 + 0.5 * 16 = 10; G_0 = 1 + 0.5 * (0.5 * 8 + 0.5 * 10) = 5.5.
    np.testing.assert_array_equal(result, [[5.5], [10.0]])


def test_with_lambda_1_the_first_target_is_the_discounted_sum_and_the_last_value():
    rewards = np.random.default_rng(0).normal(size=(6, 1)).astype(np.float32)
    zeros, values = np.zeros((6, 1), bool), np.full((6, 1), np.float32(1e3))
    arrays = map(jnp.asarray, (rewards, zeros, zeros, values, values))
    result = lambda_targets(*arrays, jnp.array([3.0]), hyperparams(0.9, 1.0))
    np.testing.assert_allclose(result[0, 0], np.sum(0.9 ** np.arange(6) * rewards[:, 0]) + 0.9**6 * 3.0, rtol=1e-5)


def test_probes_reach_their_known_values():
    env = probes.ProbeEnvironment(has_action_mask=True)
    cases = probes.PROBES + probes.MASKED_PROBES
    learner = make_pqn(CONFIG, env, env.default_params)
    states = probes.train_on_probes(learner, cases, 150, jax.random.key(0))
    q_function = make_q_function(CONFIG.trunk, env, env.default_params, is_dueling=False)
    for i, probe in enumerate(cases):
        state = jax.tree.map(lambda x, i=i: x[i], states)
        seen = probes.masked_observations(probe)
        values = q_losses.greedy_values(q_function.apply(state.params, seen), action_mask_of(seen))
        actions, memory = learner.act(state, seen, jnp.zeros(4, bool), learner.init_memory(4), jax.random.key(0))
        assert memory is None
        probes.check_probe(probe, values / CONFIG.reward_scale, actions, GAMMA, 0.02)


@pytest.fixture(scope="module")
def cartpole():
    """(learner, environment parameters, jitted update)."""
    env, env_params = gymnax.make("CartPole-v1")
    config = replace(CONFIG, num_epochs=1, epsilon_fraction=0.5, epsilon_end=0.5, anneal_updates=4)
    learner = make_pqn(config, env, env_params)
    return learner, env_params, jax.jit(jax.vmap(learner.update, (0, None)))


def test_two_updates_of_two_seeds_are_finite_count_episodes_and_move_schedules(cartpole):
    learner, env_params, update = cartpole
    states = jax.vmap(learner.init, (0, None))(jax.random.split(jax.random.key(0), 2), env_params)
    first, metrics = update(states, env_params)
    second, later = update(first, env_params)
    assert all(np.isfinite(value).all() for value in jax.tree.leaves((first.params, second.optimizer)))
    assert {"loss/td", "loss/grad_norm", "value/q_mean", "policy/epsilon", "episode/return"} <= metrics.keys()
    np.testing.assert_allclose([metrics["policy/epsilon"][0], later["policy/epsilon"][0]], [1.0, 0.75])
    np.testing.assert_allclose(later["learning_rate"], 0.75 * 3e-3, rtol=1e-6)
    assert learner.steps_per_update == 128
    assert (second.num_updates == 2).all()
    kernels = np.asarray(second.params["trunk"]["Dense_0"]["kernel"])
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_an_update_is_a_function_of_its_state(cartpole):
    learner, env_params, update = cartpole
    states = jax.vmap(learner.init, (0, None))(jax.random.split(jax.random.key(0), 2), env_params)
    one, _ = update(states, env_params)
    other, _ = update(states, env_params)
    again, _ = update(one, env_params)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert not np.array_equal(one.acting.observations, again.acting.observations)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 0),
        ("num_epochs", 0),
        ("discount", 1.5),
        ("discount", float("nan")),
        ("trace_decay", -0.1),
        ("learning_rate", 0.0),
        ("epsilon_end", 2.0),
        ("anneal_updates", -1),
        ("max_grad_norm", -1.0),
    ],
)
def test_a_bad_setting_is_refused_by_name_and_value(field, value):
    with pytest.raises(InputError, match=rf"^{field}={value} must "):
        replace(CONFIG, **{field: value})


def test_minibatches_that_do_not_divide_the_rollout_are_refused():
    with pytest.raises(InputError, match=r"num_minibatches=5 does not divide the 128 steps"):
        replace(CONFIG, num_minibatches=5)


def test_continuous_actions_are_refused_and_ppo_named():
    env, env_params = gymnax.make("Pendulum-v1")
    with pytest.raises(InputError, match="choose ppo"):
        make_pqn(CONFIG, env, env_params)
