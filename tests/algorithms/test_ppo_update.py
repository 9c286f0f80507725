"""One update of PPO against plain numpy, and the sums of its bookkeeping worked by hand."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms import PPOConfig, PPOState, make_ppo
from jaxrl_lm.types import Metrics, Trajectory
from tests.algorithms.fixtures import evaluate, init_params, largest_difference, make_trajectory
from tests.algorithms.ppo_reference import NumpyPPO

KEY = jax.random.key(0)
ONE_PASS = PPOConfig(
    learning_rate=0.03,
    num_epochs=1,
    clip_range=0.15,
    value_clip_range=0.3,
    value_coefficient=0.5,
    entropy_coefficient=0.02,
    max_grad_norm=0.1,
    adam_epsilon=1e-3,
)


def run(config: PPOConfig, trajectory: Trajectory, *, num_updates: int = 1) -> tuple[PPOState, Metrics]:
    """Some updates on one trajectory, from `init_params()`."""
    algorithm = make_ppo(config, evaluate)
    update = jax.jit(algorithm.update)
    state, metrics = algorithm.init(init_params(), KEY), {}
    for key in jax.random.split(KEY, num_updates):
        state, metrics = update(state, trajectory, key)
    return state, metrics


def steps(rewards: list, mask: list, **changes: object) -> Trajectory:
    """Steps that end an episode each, with values of 0: advantages and returns are the rewards."""
    shape = np.shape(rewards)
    zeros = jnp.zeros(shape)
    trajectory = Trajectory(
        observations=jnp.arange(zeros.size).reshape(shape),
        actions=jnp.zeros(shape, jnp.int32),
        log_probs=zeros,
        values=zeros,
        rewards=jnp.asarray(rewards, jnp.float32),
        discounts=zeros,
        traces=zeros,
        next_values=zeros,
        mask=jnp.asarray(mask, jnp.float32),
        value_mask=jnp.asarray(mask, jnp.float32),
    )
    log_probs = evaluate(init_params(), trajectory.observations, trajectory.actions).log_probs
    return replace(trajectory, **({"log_probs": log_probs} | changes))


@pytest.mark.parametrize(
    ("value_loss", "adam", "is_whitening"),
    itertools.product(["clipped", "huber"], ["pytorch", "tensorflow"], [True, False]),
)
def test_two_updates_equal_the_numpy_loops(value_loss, adam, is_whitening):
    config = replace(
        ONE_PASS,
        value_loss=value_loss,
        adam=adam,
        is_whitening_rewards=is_whitening,
        is_whitening_advantages=is_whitening,
    )
    trajectory = make_trajectory(init_params(), log_prob_noise=0.3)
    algorithm, reference = make_ppo(config, evaluate), NumpyPPO(config, init_params())
    update, state = jax.jit(algorithm.update), algorithm.init(init_params(), KEY)
    for count in (1, 2):
        state, metrics = update(state, trajectory, KEY)
        expected = reference.update(trajectory)
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        for name, value in reference.params.items():
            np.testing.assert_allclose(
                state.params[name], value, atol=1e-5, rtol=0, err_msg=f"{name} {count}"
            )
    # The trajectory must reach what it is there to test.
    assert metrics["ratio/clip_fraction"] > 0.1
    assert metrics["loss/grad_norm"] > config.max_grad_norm
    assert metrics.get("value/clip_fraction", 0.5) > 0.1
    assert largest_difference(state.params, init_params()) > 0.02


def test_the_value_clip_fraction_is_reported_only_where_values_are_clipped():
    trajectory = make_trajectory(init_params())
    assert "value/clip_fraction" not in run(replace(ONE_PASS, value_loss="huber"), trajectory)[1]
    assert run(ONE_PASS, trajectory)[1]["value/clip_fraction"] == 0.0  # the values have not moved yet


def test_metrics_have_their_published_names():
    assert run(PPOConfig(), make_trajectory(init_params()))[1].keys() == {
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


def test_the_total_loss_is_the_weighted_sum_of_its_parts():
    _, metrics = run(ONE_PASS, make_trajectory(init_params(), log_prob_noise=0.3))
    total = metrics["loss/policy"] + 0.5 * metrics["loss/value"] - 0.02 * metrics["policy/entropy"]
    np.testing.assert_allclose(metrics["loss/total"], total, rtol=1e-6)


def test_the_first_ratio_is_one_when_the_log_probs_are_those_of_the_policy():
    config = replace(ONE_PASS, num_epochs=3)
    _, metrics = run(config, make_trajectory(init_params()))
    assert metrics["ratio/first_max_error"] < 1e-6
    assert metrics["ratio/max_error"] > 1e-2  # later epochs have moved on


def test_the_first_ratio_error_grows_with_the_distance_of_the_sampling_temperature():
    trajectory = make_trajectory(init_params())
    errors = []
    for temperature in (1.0, 1.1, 1.3, 1.7):
        scored = evaluate(init_params(), trajectory.observations, trajectory.actions, temperature=temperature)
        _, metrics = run(PPOConfig(), replace(trajectory, log_probs=scored.log_probs))
        errors.append(float(metrics["ratio/first_max_error"]))
    assert errors[0] < 1e-6 < 1e-2 < errors[1] < errors[2] < errors[3]


def test_returns_worked_by_hand():
    trajectory = steps(
        [[1.0, 2.0, 100.0]],
        [[1, 1, 0]],
        values=jnp.array([[0.5, 0.25, 7.0]]),
        next_values=jnp.array([[0.25, 3.0, 7.0]]),
        discounts=jnp.array([[0.9, 0.9, 0.9]]),
        traces=jnp.array([[0.8, 0.0, 0.8]]),
    )
    _, metrics = run(replace(ONE_PASS, is_whitening_advantages=True), trajectory)
    second = 2.0 + 0.9 * 3.0 - 0.25  # cut by a time limit: bootstraps, but hands no trace on
    first = 1.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * second
    np.testing.assert_allclose(metrics["value/returns"], (first + 0.5 + second + 0.25) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["value/advantage_std"], abs(first - second) / 2, rtol=1e-5)


def test_values_regress_on_returns_of_unwhitened_advantages():
    trajectory = steps([[1.0, 2.0], [6.0, 0.0]], [[1, 1], [1, 0]])
    _, metrics = run(replace(ONE_PASS, value_loss="huber", value_clip_range=100.0), trajectory)
    predicted = np.array(init_params()["values"])[:3]
    expected = np.mean(0.5 * (predicted - np.array([1.0, 2.0, 6.0])) ** 2)
    np.testing.assert_allclose(metrics["loss/value"], expected, rtol=1e-6)


def test_whitening_of_rewards_keeps_their_mean_and_reaches_the_returns():
    trajectory = steps([[1.0, 2.0], [6.0, 50.0]], [[1, 1], [1, 0]])
    config = replace(ONE_PASS, is_whitening_rewards=True, is_whitening_advantages=False)
    _, metrics = run(config, trajectory)
    np.testing.assert_allclose(metrics["value/returns"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["value/advantage_std"], 1.0, rtol=1e-5)


def test_whitening_is_over_the_whole_batch_and_not_over_a_minibatch():
    trajectory = steps([[1.0, 2.0], [6.0, 50.0]], [[1, 1], [1, 0]])
    config = replace(ONE_PASS, learning_rate=1e-9, num_minibatches=2)
    _, metrics = run(config, trajectory)
    whitened = (np.array([1.0, 2.0, 6.0]) - 3.0) / np.sqrt(14 / 3)
    # Each minibatch holds one sequence; whitened by itself, its mean would be 0.
    expected = -(np.mean(whitened[:2]) + whitened[2]) / 2
    np.testing.assert_allclose(metrics["loss/policy"], expected, rtol=1e-5)


def test_the_learning_rate_falls_linearly_to_zero_and_stays_there():
    algorithm = make_ppo(replace(ONE_PASS, anneal_updates=4), evaluate)
    update, state = jax.jit(algorithm.update), algorithm.init(init_params(), KEY)
    trajectory = make_trajectory(init_params())
    rates, moved = [], []
    for _ in range(6):
        before = state.params
        state, metrics = update(state, trajectory, KEY)
        rates.append(float(metrics["learning_rate"]))
        moved.append(largest_difference(before, state.params) > 0)
    np.testing.assert_allclose(rates, np.array([4, 3, 2, 1, 0, 0]) * 0.03 / 4, rtol=1e-6)
    assert moved == [True, True, True, True, False, False]
    assert int(state.num_updates) == 6


def test_without_annealing_the_learning_rate_stays():
    _, metrics = run(ONE_PASS, make_trajectory(init_params()), num_updates=3)
    np.testing.assert_allclose(metrics["learning_rate"], 0.03, rtol=1e-6)


def test_every_epoch_sees_every_step_once_a_pass():
    """The count of Adam's steps, and a minibatch's share, which its mean does not see."""
    config = replace(ONE_PASS, num_epochs=3, num_minibatches=4, learning_rate=1e-9)
    trajectory = steps([[1.0], [2.0], [4.0], [9.0]], [[1], [1], [1], [1]])
    state, metrics = run(replace(config, is_whitening_advantages=False), trajectory)
    np.testing.assert_allclose(metrics["loss/policy"], -4.0, rtol=1e-5)
    assert [int(x) for x in jax.tree.leaves(state.optimizer) if x.dtype == jnp.int32] == [12]
