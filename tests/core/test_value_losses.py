"""Value losses against loops, their limits, and the share of variance that values explain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.core import value_losses

clipped_value_loss = jax.jit(value_losses.clipped_value_loss)
squared_value_loss = jax.jit(value_losses.squared_value_loss)
NUMBERS = hnp.arrays(np.float32, (6,), elements=st.floats(-10, 10, width=32))


def test_squared_loss_is_half_the_squared_error_with_gradient_the_error():
    values, returns = jnp.array([1.0, 4.0]), jnp.array([3.0, 1.0])
    np.testing.assert_array_equal(value_losses.squared_value_loss(values, returns), [2.0, 4.5])
    gradient = jax.grad(lambda v: value_losses.squared_value_loss(v, returns).sum())(values)
    np.testing.assert_array_equal(gradient, [-2.0, 3.0])


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (0.1, 1.0, 0.405, -0.9),  # within the range
        (0.5, 1.0, 0.32, 0.0),  # moved past the range towards the target: held at 0.2
        (0.5, -1.0, 1.125, 1.5),  # moved past the range away from the target: pulled back
        (-0.5, -1.0, 0.32, 0.0),
        (2.0, 1.0, 0.5, 1.0),  # overshot: the unclipped error is the larger
    ],
)
def test_clipped_loss_worked_by_hand_around_an_old_value_of_zero(value, target, loss, gradient):
    result = jax.value_and_grad(
        lambda v: value_losses.clipped_value_loss(v, jnp.zeros(1), jnp.array([target]), 0.2).sum()
    )(jnp.array([value]))
    np.testing.assert_allclose(result[0], loss, rtol=1e-6)
    np.testing.assert_allclose(result[1], [gradient], rtol=1e-6, atol=1e-7)


@given(values=NUMBERS, old_values=NUMBERS, returns=NUMBERS, clip_range=st.floats(0.125, 4, width=32))
@settings(max_examples=50, deadline=None)
def test_clipped_loss_equals_the_loop_and_bounds_the_squared_loss(values, old_values, returns, clip_range):
    arrays = jnp.asarray(values), jnp.asarray(old_values), jnp.asarray(returns)
    result = clipped_value_loss(*arrays, clip_range)
    for i, (v, old, target) in enumerate(zip(values, old_values, returns, strict=True)):
        v, old, target = float(v), float(old), float(target)
        clipped = np.float32(min(max(v, np.float32(old - clip_range)), np.float32(old + clip_range)))
        losses = 0.5 * (v - target) ** 2, 0.5 * (float(clipped) - target) ** 2
        np.testing.assert_allclose(result[i], max(losses), rtol=1e-5, atol=1e-6)
    assert (result >= squared_value_loss(arrays[0], arrays[2])).all()


def test_clip_fraction_counts_kept_steps_whose_clipped_error_is_larger():
    values, old_values = jnp.array([0.1, 0.5, 0.5, -0.5, 0.5]), jnp.zeros(5)
    returns, weights = jnp.array([1.0, 1.0, -1.0, -1.0, 1.0]), jnp.array([0.25, 0.25, 0.25, 0.25, 0])
    fraction = value_losses.value_clip_fraction(values, old_values, returns, 0.2, weights)
    assert fraction == 0.5
    gradient = jax.grad(lambda v: value_losses.clipped_value_loss(v, old_values, returns, 0.2).sum())(values)
    assert np.mean(np.asarray(gradient)[:4] == 0) == fraction


@pytest.mark.parametrize("loss", ["huber", "clipped"])
def test_an_infinite_range_leaves_the_squared_loss_and_its_gradient(loss):
    values, returns = jnp.array([0.0, 3.0, -1e3]), jnp.array([0.0, 1.0, 1e3])

    def total(v):
        if loss == "huber":
            return jnp.sum(value_losses.huber_value_loss(v, returns, jnp.inf))
        return jnp.sum(clipped_value_loss(v, v + 1.0, returns, jnp.inf))

    value, slope = jax.value_and_grad(total)(values)
    np.testing.assert_allclose(value, 0.5 * (0 + 4 + 4e6))
    np.testing.assert_array_equal(slope, values - returns)


def test_a_wide_clip_range_leaves_the_squared_loss():
    values, old_values, returns = jnp.array([1.0, -2.0]), jnp.array([0.0, 3.0]), jnp.array([5.0, 5.0])
    np.testing.assert_array_equal(
        value_losses.clipped_value_loss(values, old_values, returns, 100.0),
        value_losses.squared_value_loss(values, returns),
    )
    assert value_losses.value_clip_fraction(values, old_values, returns, 100.0, jnp.full(2, 0.5)) == 0


def test_huber_loss_worked_by_hand_on_both_sides_of_delta():
    values, returns = jnp.array([0.5, 3.0, -3.0, 2.0]), jnp.zeros(4)
    np.testing.assert_allclose(value_losses.huber_value_loss(values, returns, 2.0), [0.125, 4.0, 4.0, 2.0], rtol=1e-6)
    gradient = jax.grad(lambda v: value_losses.huber_value_loss(v, returns[:3], 2.0).sum())(values[:3])
    np.testing.assert_allclose(gradient, [0.5, 2.0, -2.0], rtol=1e-6)


def test_huber_loss_with_a_large_delta_is_the_squared_loss():
    values, returns = jnp.array([0.5, 3.0, -3.0]), jnp.array([1.0, -1.0, 2.0])
    np.testing.assert_allclose(
        value_losses.huber_value_loss(values, returns, 100.0),
        value_losses.squared_value_loss(values, returns),
        rtol=1e-6,
    )


def test_losses_vmap_over_their_scalars():
    values, returns = jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0])
    scalars = jnp.array([0.1, 1.0])
    clipped = jax.vmap(lambda c: value_losses.clipped_value_loss(values, jnp.zeros(2), returns, c))(scalars)
    np.testing.assert_allclose(clipped, [[0.5 * 1.9**2, 4.5], [0.5, 4.5]], rtol=1e-6)
    huber = jax.vmap(lambda delta: value_losses.huber_value_loss(values, returns, delta))(scalars)
    np.testing.assert_allclose(huber, [[0.095, 0.295], [0.5, 2.5]], rtol=1e-6)


def test_explained_variance_worked_by_hand():
    returns, mask = jnp.array([1.0, 2.0, 3.0, 4.0, jnp.nan]), jnp.array([0.25, 0.25, 0.25, 0.25, 0])

    def explained(values):
        return value_losses.explained_variance(jnp.array([*values, 7.0]), returns, mask)

    np.testing.assert_allclose(explained([1.0, 2.0, 3.0, 4.0]), 1.0, rtol=1e-6)
    np.testing.assert_allclose(explained([11.0, 12.0, 13.0, 14.0]), 1.0, rtol=1e-6)  # a bias is not variance
    np.testing.assert_allclose(explained([5.0, 5.0, 5.0, 5.0]), 0.0, atol=1e-6)
    np.testing.assert_allclose(explained([4.0, 3.0, 2.0, 1.0]), -3.0, rtol=1e-6)
    np.testing.assert_allclose(explained([0.5, 1.0, 1.5, 2.0]), 0.75, rtol=1e-6)


def test_explained_variance_of_constant_returns_is_zero_rather_than_nan():
    values, returns = jnp.array([1.0, 2.0]), jnp.array([3.0, 3.0])
    assert value_losses.explained_variance(values, returns, jnp.ones(2)) == 0
