"""One update of PPO against plain numpy, and the sums of its bookkeeping worked by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms import PPOConfig, make_ppo
from jaxrl_lm.core.shuffling import random_order
from jaxrl_lm.types import Trajectory
from tests.algorithms.fixtures import (
    BATCH,
    KEY,
    NUM_STATES,
    NUM_STEPS,
    evaluate,
    init_params,
    jitted_update,
    largest_difference,
    make_trajectory,
    run,
    score,
)
from tests.algorithms.ppo_reference import NumpyPPO

ONE_PASS = PPOConfig(
    learning_rate=0.03,
    num_epochs=1,
    clip_range=0.15,
    value_clip_range=0.2,
    value_coefficient=0.5,
    entropy_coefficient=0.02,
    max_grad_norm=0.1,
    adam_epsilon=1e-3,
)
TWO_BY_TWO = replace(ONE_PASS, num_epochs=2, num_minibatches=2)
UNMOVED = 1e-9  # a learning rate


def steps(rewards: list, mask: list, **changes: list) -> Trajectory:
    """Steps in a corner of a batch that is masked elsewhere.

    Each ends an episode and has the value 0, so that advantages and returns are the rewards,
    but for `changes`.
    """

    def in_corner(column: list) -> jax.Array:
        corner = np.array(column, np.float32)
        missing = (BATCH - len(corner), NUM_STEPS - len(corner[0]))
        return jnp.asarray(np.pad(corner, [(0, count) for count in missing]))

    zeros = jnp.zeros((BATCH, NUM_STEPS))
    names = ("values", "discounts", "traces", "next_values")
    observations = jnp.arange(zeros.size).reshape(zeros.shape) % NUM_STATES
    actions = jnp.zeros(zeros.shape, jnp.int32)
    return Trajectory(
        observations=observations,
        actions=actions,
        log_probs=score(init_params(), observations, actions).log_probs,
        rewards=in_corner(rewards),
        mask=in_corner(mask),
        value_mask=in_corner(mask),
        **{name: in_corner(changes[name]) if name in changes else zeros for name in names},
    )


@pytest.mark.parametrize(
    ("value_loss", "adam", "is_whitening", "whitening"),
    [
        ("clipped", "pytorch", True, "batch"),
        ("clipped", "tensorflow", False, "none"),
        ("huber", "pytorch", False, "none"),
        ("huber", "tensorflow", True, "batch"),
        ("squared", "pytorch", True, "minibatch"),
    ],
)
def test_two_updates_equal_the_numpy_loops(value_loss, adam, is_whitening, whitening):
    config = replace(
        ONE_PASS,
        value_loss=value_loss,
        adam=adam,
        whiten_rewards=is_whitening,
        whiten_advantages=whitening,
    )
    trajectory = make_trajectory(noise=0.3)
    reference, update = NumpyPPO(config, init_params()), jitted_update(config)
    state, metrics = make_ppo(config, evaluate).init(init_params(), KEY), {}
    for _ in range(2):
        state, metrics = update(state, trajectory, KEY)
        for name, value in reference.update(trajectory).items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        for name, value in reference.params.items():
            np.testing.assert_allclose(state.params[name], value, atol=1e-5, rtol=0, err_msg=name)
    # The trajectory must reach what it is there to test.
    assert metrics["ratio/clip_fraction"] > 0.1
    assert metrics["loss/grad_norm"] > config.max_grad_norm
    assert value_loss != "clipped" or metrics["value/clip_fraction"] > 0.1
    assert largest_difference(state.params, init_params()) > 0.02


def test_metrics_have_their_published_names():
    names = {
        "kl/update",
        "learning_rate",
        "loss/grad_norm",
        "loss/policy",
        "loss/total",
        "loss/value",
        "policy/entropy",
        "ratio/clip_fraction",
        "ratio/first_max_error",
        "ratio/max_error",
        "ratio/mean",
        "value/advantage_std",
        "value/clip_fraction",
        "value/explained_variance",
        "value/returns",
    }
    trajectory = make_trajectory()
    _, metrics = run(ONE_PASS, trajectory)
    assert metrics.keys() == names
    assert {metric.shape for metric in metrics.values()} == {()}
    of_huber = make_ppo(replace(ONE_PASS, value_loss="huber"), evaluate)
    state = of_huber.init(init_params(), KEY)
    assert jax.eval_shape(of_huber.update, state, trajectory, KEY)[1].keys() == names - {"value/clip_fraction"}


def test_the_total_loss_is_the_weighted_sum_of_its_parts():
    _, metrics = run(ONE_PASS, make_trajectory(noise=0.3))
    total = metrics["loss/policy"] + 0.5 * metrics["loss/value"] - 0.02 * metrics["policy/entropy"]
    np.testing.assert_allclose(metrics["loss/total"], total, rtol=1e-6)


def test_the_first_ratio_is_one_when_the_log_probs_are_those_of_the_policy():
    _, metrics = run(TWO_BY_TWO, make_trajectory())
    assert metrics["ratio/first_max_error"] < 1e-6
    assert metrics["ratio/max_error"] > 1e-2  # later minibatches have moved on
    assert metrics["kl/update"] > 0


def test_the_first_ratio_error_grows_with_the_distance_of_the_sampling_temperature():
    trajectory, errors = make_trajectory(), []
    for temperature in (1.0, 1.1, 1.3, 1.7):
        scored = score(init_params(), trajectory.observations, trajectory.actions, temperature)
        _, metrics = run(ONE_PASS, replace(trajectory, log_probs=scored.log_probs))
        errors.append(float(metrics["ratio/first_max_error"]))
    assert errors[0] < 1e-6 < 1e-2 < errors[1] < errors[2] < errors[3]


def test_the_largest_ratio_error_is_that_of_the_whole_batch():
    trajectory = make_trajectory(noise=0.3)
    _, metrics = run(replace(TWO_BY_TWO, learning_rate=UNMOVED), trajectory)
    exact = score(init_params(), trajectory.observations, trajectory.actions).log_probs
    errors = np.abs(np.exp(np.array(exact - trajectory.log_probs)) - 1.0)[np.array(trajectory.mask) > 0]
    np.testing.assert_allclose(metrics["ratio/max_error"], errors.max(), rtol=1e-5)


def test_returns_worked_by_hand():
    trajectory = steps(
        [[1.0, 2.0, 100.0]],
        [[1, 1, 0]],
        values=[[0.5, 0.25, 7.0]],
        next_values=[[0.25, 3.0, 7.0]],
        discounts=[[0.9, 0.9, 0.9]],
        traces=[[0.8, 0.0, 0.8]],
    )
    _, metrics = run(ONE_PASS, trajectory)
    second = 2.0 + 0.9 * 3.0 - 0.25  # cut by a time limit: bootstraps, but hands no trace on
    first = 1.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * second
    np.testing.assert_allclose(metrics["value/returns"], (first + 0.5 + second + 0.25) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["value/advantage_std"], abs(first - second) / 2, rtol=1e-5)


def test_values_regress_on_returns_of_unwhitened_advantages():
    trajectory = steps([[1.0, 2.0], [6.0, 50.0]], [[1, 1], [1, 0]])
    config = replace(ONE_PASS, value_loss="huber", adam="tensorflow", value_clip_range=100.0)
    _, metrics = run(replace(config, whiten_rewards=True), trajectory)
    rewards = 3.0 + (np.array([1.0, 2.0, 6.0]) - 3.0) / np.sqrt(14 / 3)  # whitened, their mean kept
    predicted = np.array(init_params()["values"])[[0, 1, NUM_STEPS]]
    np.testing.assert_allclose(metrics["loss/value"], np.mean(0.5 * (predicted - rewards) ** 2), rtol=1e-6)
    np.testing.assert_allclose(metrics["value/returns"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["value/advantage_std"], 1.0, rtol=1e-5)


def test_whitening_is_over_the_whole_batch_and_not_over_a_minibatch():
    rewards = np.array([[10.0**b] for b in range(4)] + [[0.0]] * 4)
    trajectory = steps(rewards.tolist(), [[1]] * 4 + [[0]] * 4)
    whitened = np.where(rewards, (rewards - rewards[:4].mean()) / rewards[:4].std(), 0.0)[:, 0]
    _, metrics = run(replace(TWO_BY_TWO, learning_rate=UNMOVED), trajectory)
    expected = []
    for epoch_key in jax.random.split(jax.random.split(KEY, 1)[0], TWO_BY_TWO.num_epochs):
        halves = np.array(random_order(epoch_key, BATCH)).reshape(2, 4)
        expected += [-whitened[half].sum() / max(1, (half < 4).sum()) for half in halves]
    assert abs(np.mean(expected)) > 0.01  # whitened by itself, each minibatch would have the mean 0
    np.testing.assert_allclose(metrics["loss/policy"], np.mean(expected), rtol=1e-5)


def test_minibatches_of_an_epoch_hold_every_sequence_once():
    trajectory = steps([[4.0**b] for b in range(BATCH)], [[1]] * BATCH)
    config = replace(TWO_BY_TWO, learning_rate=UNMOVED, value_clip_range=1e6)
    state, metrics = run(config, trajectory)
    predicted = np.array(init_params()["values"])[np.arange(BATCH) * NUM_STEPS % NUM_STATES]
    errors = predicted - 4.0 ** np.arange(BATCH)
    np.testing.assert_allclose(metrics["loss/value"], np.mean(0.5 * errors**2), rtol=1e-6)
    assert [int(x) for x in jax.tree.leaves(state.optimizer) if x.dtype == jnp.int32] == [4]


def test_the_learning_rate_falls_linearly_to_zero_and_stays_there():
    config = replace(ONE_PASS, anneal_updates=4)
    update, state = jitted_update(config), make_ppo(config, evaluate).init(init_params(), KEY)
    rates, moved = [], []
    for _ in range(6):
        before = state.params
        state, metrics = update(state, make_trajectory(), KEY)
        rates.append(float(metrics["learning_rate"]))
        moved.append(largest_difference(before, state.params) > 0)
    np.testing.assert_allclose(rates, np.array([4, 3, 2, 1, 0, 0]) * 0.03 / 4, rtol=1e-6)
    assert moved == [True, True, True, True, False, False]
    assert int(state.num_updates) == 6


def test_without_annealing_the_learning_rate_stays():
    _, metrics = run(ONE_PASS, make_trajectory(), num_updates=3)
    np.testing.assert_allclose(metrics["learning_rate"], 0.03, rtol=1e-6)
