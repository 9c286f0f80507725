"""Options of PPO: target KL, whitening of minibatches, schedules; each against another way to the same numbers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms import PPOConfig, make_ppo
from jaxrl_lm.algorithms.schedules import ScheduleConfig
from jaxrl_lm.core import kl
from jaxrl_lm.core.shuffling import random_order
from tests.algorithms.fixtures import (
    BATCH,
    KEY,
    assert_trees_close,
    evaluate,
    init_params,
    jitted_update,
    largest_difference,
    make_trajectory,
    run,
)

CONFIG = PPOConfig(learning_rate=0.05, num_epochs=4, value_coefficient=0.5, entropy_coefficient=0.02)
CONSTANT, LINEAR, COSINE = (ScheduleConfig(kind=kind) for kind in ("constant", "linear", "cosine"))


@pytest.fixture(scope="module")
def after_epochs():
    """States after 1 to 4 epochs of one minibatch, and the KL estimate before each epoch."""
    trajectory = make_trajectory(is_masked=False)
    states, divergences = [], [0.0]
    for num_epochs in range(1, 5):
        state, _ = run(replace(CONFIG, num_epochs=num_epochs), trajectory)
        log_probs = evaluate(state.params, trajectory.observations, trajectory.actions).log_probs
        states.append(state)
        divergences.append(float(jnp.mean(kl.k3(trajectory.log_probs, log_probs))))
    return trajectory, states, divergences


@pytest.mark.parametrize("num_applied", [1, 2, 3])
def test_epochs_stop_before_the_first_step_at_which_the_kl_is_above_its_target(after_epochs, num_applied):
    trajectory, states, divergences = after_epochs
    assert divergences[num_applied] > divergences[num_applied - 1]
    target_kl = 0.5 * (divergences[num_applied - 1] + divergences[num_applied])
    state, metrics = run(replace(CONFIG, target_kl=target_kl), trajectory)
    expected = states[num_applied - 1]
    assert_trees_close((state.params, state.optimizer), (expected.params, expected.optimizer), atol=1e-6)
    assert float(metrics["minibatches/applied"]) == num_applied / 4
    np.testing.assert_allclose(metrics["kl/update"], np.mean(divergences[:num_applied]), atol=1e-6)


def test_a_kl_target_that_is_never_reached_changes_nothing(after_epochs):
    trajectory, states, _ = after_epochs
    state, metrics = run(replace(CONFIG, target_kl=100.0), trajectory)
    assert_trees_close(state.params, states[-1].params, atol=1e-6)  # two programs, which round differently
    assert float(metrics["minibatches/applied"]) == 1.0


def test_seeds_stop_each_for_itself_under_vmap(after_epochs):
    trajectory, states, divergences = after_epochs
    config = replace(CONFIG, target_kl=0.5 * (divergences[1] + divergences[2]))
    algorithm = make_ppo(config, evaluate)
    start = algorithm.init(init_params(), KEY)
    rates = jnp.array([CONFIG.learning_rate, 1e-6])
    begin = jax.vmap(lambda rate: replace(start, hyperparams=replace(start.hyperparams, learning_rate=rate)))(rates)
    swept, metrics = jax.jit(jax.vmap(algorithm.update, (0, None, None)))(begin, trajectory, KEY)
    np.testing.assert_array_equal(metrics["minibatches/applied"], [0.5, 1.0])
    assert largest_difference(jax.tree.map(lambda x: x[0], swept.params), states[1].params) < 1e-5


def test_whitening_each_minibatch_equals_updates_on_its_parts():
    config = replace(CONFIG, num_epochs=1, num_minibatches=2, whiten_advantages="minibatch")
    trajectory = make_trajectory()
    state, metrics = run(config, trajectory)
    (epoch_key,) = jax.random.split(jax.random.split(KEY, 1)[0], 1)
    halves = np.array(random_order(epoch_key, BATCH)).reshape(2, -1)
    parts = replace(config, num_minibatches=1, whiten_advantages="batch")
    update, expected = jitted_update(parts), make_ppo(parts, evaluate).init(init_params(), KEY)
    losses = []
    for half in halves:
        expected, found = update(expected, jax.tree.map(lambda x, half=half: x[half], trajectory), KEY)
        losses.append(float(found["loss/policy"]))
    assert_trees_close(state.params, expected.params, atol=1e-6)
    np.testing.assert_allclose(metrics["loss/policy"], np.mean(losses), atol=1e-6)
    assert (
        largest_difference(state.params, run(replace(config, whiten_advantages="batch"), trajectory)[0].params) > 1e-3
    )


def test_schedules_give_the_settings_of_their_place_in_the_run():
    """A quarter of the way: linear 0.75, cosine 0.5 + 0.5 cos(pi / 4)."""
    cosine = 0.5 + 0.5 * np.cos(np.pi / 4)
    config = replace(
        CONFIG,
        learning_rate_schedule=COSINE,
        clip_range_schedule=LINEAR,
        entropy_schedule=COSINE,
        anneal_updates=8,
    )
    same = replace(
        CONFIG,
        learning_rate_schedule=CONSTANT,
        learning_rate=cosine * CONFIG.learning_rate,
        clip_range=0.75 * CONFIG.clip_range,
        entropy_coefficient=cosine * CONFIG.entropy_coefficient,
        anneal_updates=8,
    )
    trajectory, states = make_trajectory(noise=0.3), []
    for each in (config, same):
        state = replace(make_ppo(each, evaluate).init(init_params(), KEY), num_updates=jnp.int32(2))
        state, metrics = jitted_update(each)(state, trajectory, KEY)
        states.append((state.params, metrics))
    assert_trees_close(*states, atol=1e-6)
    assert float(states[0][1]["ratio/clip_fraction"]) > 0.1
