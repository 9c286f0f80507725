"""Targets and losses of action values against loops, numbers worked by hand, and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.core import q_losses, returns

FLOATS = st.floats(-8, 8, width=32)


def test_q_learning_target_worked_by_hand_with_a_terminal_step_and_an_illegal_action():
    targets = q_losses.q_learning_targets(
        jnp.array([1.0, 2.0, 3.0]),
        jnp.array([0.5, 0.0, 0.5]),
        jnp.array([[4.0, 6.0], [jnp.nan, 6.0], [4.0, 60.0]]),
        jnp.array([[True, True], [False, False], [True, False]]),
    )
    np.testing.assert_array_equal(targets, [4.0, 2.0, 5.0])


def test_double_q_target_takes_the_action_of_one_network_and_the_value_of_the_other():
    rewards, discounts = jnp.array([1.0, 1.0, 1.0]), jnp.array([0.5, 0.5, 0.0])
    target, online = jnp.array([[10.0, 2.0, 4.0]] * 3), jnp.array([[0.0, 5.0, 4.0]] * 3)
    mask = jnp.array([[True] * 3, [True, False, True], [True] * 3])
    result = q_losses.double_q_targets(rewards, discounts, target, online, mask)
    np.testing.assert_array_equal(result, [2.0, 3.0, 1.0])


def test_double_q_target_of_equal_networks_is_the_q_learning_target():
    q_values = jax.random.normal(jax.random.key(0), (32, 5))
    rewards, discounts = jax.random.normal(jax.random.key(1), (2, 32))
    single = q_losses.q_learning_targets(rewards, discounts, q_values)
    np.testing.assert_array_equal(q_losses.double_q_targets(rewards, discounts, q_values, q_values), single)


def test_double_q_target_is_never_above_the_q_learning_target():
    target, online = jax.random.normal(jax.random.key(0), (2, 64, 4))
    rewards, discounts = jnp.zeros(64), jnp.full(64, 0.9)
    single = q_losses.q_learning_targets(rewards, discounts, target)
    double = q_losses.double_q_targets(rewards, discounts, target, online)
    assert (double <= single).all()
    assert (double < single).any()


def test_greedy_actions_and_values_skip_illegal_actions():
    q_values = jnp.array([[1.0, 3.0, 3.0], [1.0, 3.0, 2.0]])
    mask = jnp.array([[True, True, True], [True, False, True]])
    np.testing.assert_array_equal(q_losses.greedy_actions(q_values, mask), [1, 2])
    np.testing.assert_array_equal(q_losses.greedy_values(q_values, mask), [3.0, 2.0])
    np.testing.assert_array_equal(q_losses.greedy_actions(-q_values), [0, 0])


def test_values_of_actions_send_gradient_to_the_taken_action_only():
    q_values, actions = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), jnp.array([2, 0])
    np.testing.assert_array_equal(q_losses.values_of_actions(q_values, actions), [3.0, 4.0])
    gradient = jax.grad(lambda q: q_losses.values_of_actions(q, actions).sum())(q_values)
    np.testing.assert_array_equal(gradient, [[0, 0, 1], [1, 0, 0]])


def loop_n_step(rewards, discounts, is_cut):
    total, discount = 0.0, 1.0
    last = -1
    for r, d, cut in zip(rewards, discounts, is_cut, strict=True):
        total, discount, last = total + discount * r, discount * d, last + 1
        if cut:
            break
    return total, discount, last


n_step_jit = jax.jit(q_losses.n_step_transitions)


@given(data=st.data(), num_steps=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_n_step_transitions_equal_the_loop_that_stops_at_the_first_cut(data, num_steps):
    rewards = data.draw(hnp.arrays(np.float32, (3, 5), elements=FLOATS))[:, :num_steps]
    is_cut = data.draw(hnp.arrays(bool, (3, 5)))[:, :num_steps]
    terminated = is_cut & data.draw(hnp.arrays(bool, (3, 5)))[:, :num_steps]
    discounts = np.where(terminated, 0, 0.9).astype(np.float32)
    result = n_step_jit(rewards, discounts, is_cut)
    for row in range(3):
        expected = loop_n_step(rewards[row], discounts[row], is_cut[row])
        for got, want in zip(result, expected, strict=True):
            np.testing.assert_allclose(got[row], want, rtol=1e-5, atol=1e-5)


def test_n_step_transitions_worked_by_hand_around_a_time_limit():
    rewards, discounts = (
        jnp.array([[1.0, 2.0, 4.0]] * 3),
        jnp.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.0, 0.5]]),
    )
    is_cut = jnp.array([[0, 0, 0], [0, 1, 0], [0, 1, 0]])
    total, discount, last = q_losses.n_step_transitions(rewards, discounts, is_cut)
    np.testing.assert_array_equal(total, [3.0, 2.0, 2.0])
    np.testing.assert_array_equal(discount, [0.125, 0.25, 0.0])
    np.testing.assert_array_equal(last, [2, 1, 1])


def test_n_step_targets_equal_the_n_step_returns_of_a_window_without_cuts():
    rewards, next_values = jax.random.normal(jax.random.key(0), (2, 4))
    discounts = jnp.array([0.9, 0.9, 0.0, 0.9])
    expected = returns.n_step_returns(rewards, next_values, discounts, 3)
    total, discount, last = q_losses.n_step_transitions(rewards[:3], discounts[:3], discounts[:3] == 0)
    np.testing.assert_allclose(total + discount * next_values[last], expected[0], rtol=1e-6)


def test_dueling_values_worked_by_hand_and_unmoved_by_a_shift_of_advantages():
    values, advantages = jnp.array([10.0]), jnp.array([[1.0, 2.0, 6.0]])
    q_values = q_losses.dueling_q_values(values, advantages)
    np.testing.assert_array_equal(q_values, [[8.0, 9.0, 13.0]])
    np.testing.assert_array_equal(q_losses.dueling_q_values(values, advantages + 4.0), q_values)


@pytest.mark.parametrize(
    ("error", "delta", "loss", "gradient"),
    [
        (0.5, 1.0, 0.125, 0.5),
        (-3.0, 1.0, 2.5, -1.0),
        (3.0, 2.0, 4.0, 2.0),
        (3.0, np.inf, 4.5, 3.0),
        (1.0, 1.0, 0.5, 1.0),
    ],
)
def test_td_loss_and_its_gradient_worked_by_hand(error, delta, loss, gradient):
    result = jax.value_and_grad(lambda q: q_losses.td_losses(q, jnp.array([7.0]), delta).sum())(
        jnp.array([7.0 + error])
    )
    np.testing.assert_array_equal(result[0], loss)
    np.testing.assert_array_equal(result[1], [gradient])


def test_importance_weights_worked_by_hand():
    probabilities = jnp.array([0.1, 0.4, 0.2])
    np.testing.assert_allclose(q_losses.importance_weights(probabilities, 0.5), [1.0, 0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_array_equal(q_losses.importance_weights(probabilities, 0.0), [1.0, 1.0, 1.0])
    by_count = (5 * np.array([0.1, 0.4, 0.2])) ** -0.7
    np.testing.assert_allclose(q_losses.importance_weights(probabilities, 0.7), by_count / by_count.max(), rtol=1e-6)


def test_importance_weights_of_full_exponent_undo_the_sampling():
    priorities, errors = np.array([1.0, 2.0, 5.0]), np.array([3.0, -1.0, 4.0])
    weights = np.asarray(q_losses.importance_weights(jnp.asarray(priorities), 1.0))
    drawn_mean = np.sum(priorities / priorities.sum() * weights * errors)
    np.testing.assert_allclose(drawn_mean / np.sum(priorities / priorities.sum() * weights), errors.mean(), rtol=1e-6)
