"""Masked reductions against numpy on the kept entries, and what masked entries may hold."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.core import masked

REDUCTIONS = {
    masked.masked_sum: np.sum,
    masked.masked_mean: np.mean,
    masked.masked_var: np.var,
    masked.masked_std: np.std,
    masked.masked_max: np.max,
}
JITTED = {reduction: jax.jit(reduction) for reduction in REDUCTIONS}
X = np.array([[1.0, -2.0, 4.0, 7.0], [0.5, 3.0, -6.0, 2.0], [9.0, 8.0, 7.0, 6.0]], np.float32)
MASK = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda f: f.__name__)
@given(
    x=hnp.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)),
    mask=hnp.arrays(bool, (3, 4)),
    garbage=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]),
)
@settings(max_examples=40, deadline=None)
def test_reductions_equal_numpy_on_the_kept_entries_whatever_the_others_hold(reduction, x, mask, garbage):
    expected = REDUCTIONS[reduction](x[mask].astype(np.float64)) if mask.any() else 0.0
    result = JITTED[reduction](jnp.asarray(np.where(mask, x, garbage)), jnp.asarray(mask))
    # Deviations from the mean carry the rounding of the entries, at most 100 * 2^-24, into the square root.
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_reductions_along_an_axis_equal_numpy_row_by_row(reduction, axis):
    rows, row_masks = (X, MASK) if axis != 0 else (X.T, MASK.T)
    expected = [
        REDUCTIONS[reduction](row[keep]) if keep.any() else 0.0 for row, keep in zip(rows, row_masks, strict=True)
    ]
    result = reduction(jnp.asarray(X), jnp.asarray(MASK), axis)
    assert result.shape == (len(rows),)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_reduction_over_two_axes_equals_reduction_of_the_flattened():
    x, mask = jnp.asarray(X).reshape(3, 2, 2), jnp.asarray(MASK).reshape(3, 2, 2)
    np.testing.assert_allclose(masked.masked_mean(x, mask, (1, 2)), [4.0, 3.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_masks_of_any_dtype_mean_the_same(dtype):
    assert masked.masked_mean(jnp.asarray(X), jnp.asarray(MASK, dtype)) == 3.75


def test_half_precision_entries_are_summed_in_float32():
    x = jnp.full((300,), 1.0, jnp.bfloat16)
    mean = masked.masked_mean(x.at[0].set(2.0), jnp.ones(300, bool))
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, 301 / 300, rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        *REDUCTIONS,
        lambda x, mask: jnp.sum(jnp.square(masked.whiten(x, mask, shift_mean=True)) * X),
        lambda x, mask: jnp.sum(masked.whiten(x, mask, shift_mean=False) * X),
    ],
)
def test_gradients_are_finite_and_zero_where_masked(function):
    value_and_gradient = jax.jit(jax.value_and_grad(function))
    for mask, garbage in itertools.product([MASK, np.zeros_like(MASK)], [np.nan, np.inf, -np.inf]):
        x = jnp.asarray(np.where(mask, X, garbage))
        value, gradient = value_and_gradient(x, jnp.asarray(mask))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[~mask] == 0).all()
        assert not mask.any() or np.asarray(gradient)[mask].any()


def test_std_of_equal_entries_has_gradient_zero_rather_than_nan():
    gradient = jax.grad(masked.masked_std)(jnp.full((4,), 3.0), jnp.ones(4, bool))
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_whitening_worked_by_hand():
    x, mask = jnp.array([1.0, 3.0, 5.0, 100.0]), jnp.array([1, 1, 1, 0])
    scale = np.sqrt(8 / 3)  # biased: (4 + 0 + 4) / 3
    centred = masked.whiten(x, mask, shift_mean=True)
    np.testing.assert_allclose(centred, [-2 / scale, 0.0, 2 / scale, 0.0], rtol=1e-6)
    around_mean = masked.whiten(x, mask, shift_mean=False)
    np.testing.assert_allclose(around_mean, [3 - 2 / scale, 3.0, 3 + 2 / scale, 0.0], rtol=1e-6)


def test_whitened_entries_have_the_promised_moments():
    whitened = masked.whiten(jnp.asarray(X), jnp.asarray(MASK), shift_mean=True)
    np.testing.assert_allclose(whitened[MASK].mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(whitened[MASK].var(), 1.0, rtol=1e-6)
    rewards = masked.whiten(jnp.asarray(X), jnp.asarray(MASK), shift_mean=False)
    np.testing.assert_allclose(rewards[MASK].mean(), X[MASK].mean(), rtol=1e-6)


def test_whitening_of_a_constant_gives_zeros_or_the_constant():
    x, mask = jnp.full((2, 3), 4.0), jnp.ones((2, 3))
    np.testing.assert_array_equal(masked.whiten(x, mask, shift_mean=True), np.zeros((2, 3)))
    np.testing.assert_array_equal(masked.whiten(x, mask, shift_mean=False), np.full((2, 3), 4.0))


def test_epsilon_is_added_to_the_variance():
    whitened = masked.whiten(jnp.array([-1.0, 1.0]), jnp.ones(2), shift_mean=True, epsilon=3.0)
    np.testing.assert_allclose(whitened, [-0.5, 0.5], rtol=1e-6)


def test_the_next_step_that_counts_may_be_any_number_of_columns_away():
    mask = jnp.array([[1, 1, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    x = jnp.array([[1.0, 2.0, jnp.nan, jnp.inf, 5.0, 6.0]] * 3)
    np.testing.assert_array_equal(
        masked.next_kept(x, mask), [[2, 5, 5, 5, 6, 0], [np.nan, np.nan, 0, 0, 0, 0], [0] * 6]
    )
    np.testing.assert_array_equal(masked.has_next_kept(mask), [[1, 1, 0, 0, 1, 0], [0] * 6, [0] * 6])
    np.testing.assert_array_equal(masked.is_last_kept(mask), [[0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [0] * 6])
