"""Preference losses: values by hand, how they relate, their gradients and their behaviour at large scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.core import preference_losses

SCORES = hnp.arrays(np.float32, (4, 3), elements=st.floats(-20, 20, width=32))


def test_bradley_terry_worked_by_hand():
    chosen, rejected = jnp.array([0.0, np.log(3.0)]), jnp.zeros(2)
    np.testing.assert_allclose(
        preference_losses.bradley_terry_loss(chosen, rejected), [np.log(2), np.log(4 / 3)], rtol=1e-6
    )


@pytest.mark.parametrize("margin", [1.0, jnp.array([1.0, 1.0])], ids=["for all", "an example each"])
def test_margin_asks_the_chosen_to_lead_by_that_much(margin):
    chosen, rejected = jnp.array([1.0, 4.0]), jnp.array([0.0, 2.0])
    result = preference_losses.bradley_terry_loss(chosen, rejected, margin)
    np.testing.assert_allclose(result, [np.log(2), np.log1p(np.exp(-1))], rtol=1e-6)


def test_margins_apply_to_their_own_example():
    zeros = jnp.zeros(2)
    result = preference_losses.bradley_terry_loss(zeros, zeros, jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(result, np.log1p(np.exp([0.0, 2.0])), rtol=1e-6)


@given(scores=SCORES, best=hnp.arrays(np.int32, (4,), elements=st.integers(0, 2)))
@settings(max_examples=50, deadline=None)
def test_best_of_k_equals_the_loop(scores, best):
    result = preference_losses.best_of_k_loss(jnp.asarray(scores), jnp.asarray(best))
    for row, index, loss in zip(scores.astype(np.float64), best, result, strict=True):
        np.testing.assert_allclose(loss, np.log(np.sum(np.exp(row - row[index]))), rtol=1e-5, atol=1e-5)


@given(scores=SCORES)
@settings(max_examples=30, deadline=None)
def test_best_of_two_is_bradley_terry(scores):
    pairs = jnp.asarray(scores[:, :2])
    first = preference_losses.best_of_k_loss(pairs, jnp.zeros(4, jnp.int32))
    second = preference_losses.best_of_k_loss(pairs, jnp.ones(4, jnp.int32))
    bradley_terry = preference_losses.bradley_terry_loss
    np.testing.assert_allclose(first, bradley_terry(pairs[:, 0], pairs[:, 1]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(second, bradley_terry(pairs[:, 1], pairs[:, 0]), rtol=1e-5, atol=1e-5)


def test_binary_loss_is_bradley_terry_against_a_score_of_zero():
    scores, zeros = jnp.array([-3.0, 0.0, 2.0]), jnp.zeros(3)
    bradley_terry = preference_losses.bradley_terry_loss
    good = preference_losses.binary_preference_loss(scores, jnp.ones(3))
    bad = preference_losses.binary_preference_loss(scores, jnp.zeros(3))
    np.testing.assert_allclose(good, bradley_terry(scores, zeros), rtol=1e-6)
    np.testing.assert_allclose(bad, bradley_terry(zeros, scores), rtol=1e-6)


def test_equal_scores_cost_the_entropy_of_a_guess():
    loss = preference_losses.best_of_k_loss(jnp.full((1, 4), 3.0), jnp.array([2]))
    np.testing.assert_allclose(loss, [np.log(4)], rtol=1e-6)
    binary = preference_losses.binary_preference_loss(jnp.zeros(2), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(binary, [np.log(2)] * 2, rtol=1e-6)


def test_gradients_raise_what_was_preferred_and_lower_the_rest():
    chosen, rejected = jax.grad(lambda c, r: preference_losses.bradley_terry_loss(c, r).sum(), argnums=(0, 1))(
        jnp.array([0.3]), jnp.array([0.5])
    )
    probability = 1 / (1 + np.exp(-0.2))
    np.testing.assert_allclose([chosen[0], rejected[0]], [-probability, probability], rtol=1e-5)
    of_scores = jax.grad(lambda s: preference_losses.best_of_k_loss(s, jnp.array([1])).sum())(
        jnp.array([[0.0, 1.0, 2.0]])
    )
    assert (np.sign(of_scores) == [[1, -1, 1]]).all()
    of_thumbs = jax.grad(lambda s: preference_losses.binary_preference_loss(s, jnp.array([1.0, 0.0])).sum())(
        jnp.zeros(2)
    )
    np.testing.assert_allclose(of_thumbs, [-0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e3, -1e3, 1e30, -1e30])
def test_large_scores_give_finite_losses_and_gradients(scale):
    scores, labels = jnp.array([scale, scale]), jnp.array([0.0, 1.0])
    functions = {
        "bradley_terry": lambda s: preference_losses.bradley_terry_loss(s, jnp.zeros(2)).sum(),
        "best_of_k": lambda s: preference_losses.best_of_k_loss(
            jnp.stack([s, jnp.zeros(2)], axis=-1), jnp.array([0, 1])
        ).sum(),
        "binary": lambda s: preference_losses.binary_preference_loss(s, labels).sum(),
    }
    expected = {"bradley_terry": 2 * max(-scale, 0.0), "best_of_k": abs(scale), "binary": abs(scale)}
    for name, function in functions.items():
        loss, gradient = jax.value_and_grad(function)(scores)
        np.testing.assert_allclose(loss, expected[name], rtol=1e-6, err_msg=name)
        assert np.isfinite(gradient).all(), name
