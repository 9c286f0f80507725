"""Schedules by hand, at their limits, and traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms.schedules import linear_schedule, visit_schedule


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (1, 0.8), (2, 0.6), (3, 0.4), (4, 0.2), (5, 0.2), (1000, 0.2)]
)
def test_a_line_by_hand(step, expected):
    np.testing.assert_allclose(linear_schedule(step, 1.0, 0.2, 4), expected, rtol=1e-6)


def test_a_line_ends_exactly_where_it_should():
    assert float(linear_schedule(7, 1.0, 0.05, 7)) == np.float32(0.05)


def test_a_line_without_length_is_its_end():
    assert [float(linear_schedule(step, 1.0, 0.5, 0)) for step in (0, 1)] == [0.5, 0.5]


def test_a_line_may_rise():
    np.testing.assert_allclose(linear_schedule(1, 0.4, 1.0, 3), 0.6, rtol=1e-6)


def test_lines_are_traced_once_and_vmap():
    chex.clear_trace_counter()
    schedule = jax.jit(chex.assert_max_traces(linear_schedule, n=1))
    for step in range(3):
        schedule(jnp.int32(step), jnp.float32(1.0), jnp.float32(0.0), jnp.float32(4.0))
    swept = jax.vmap(linear_schedule, (None, 0, None, 0))(1, jnp.array([1.0, 0.5]), 0.0, jnp.array([2.0, 4.0]))
    np.testing.assert_allclose(swept, [0.5, 0.375])


def test_step_sizes_by_hand():
    num_new, num_visits = jnp.array([1, 1, 2]), jnp.array([1, 4, 8])
    np.testing.assert_allclose(visit_schedule(0.1, num_new, num_visits, 0.5), [0.1, 0.05, 0.05], rtol=1e-6)


def test_power_0_is_a_constant_step_size():
    np.testing.assert_array_equal(
        visit_schedule(0.1, jnp.array([1, 3]), jnp.array([1, 300]), 0.0), np.float32([0.1, 0.1])
    )


def test_power_1_averages_all_targets():
    targets, num_new = np.random.default_rng(0).normal(size=12), (1, 3, 2, 6)
    value, seen = 100.0, 0
    for count in num_new:
        new = targets[seen : seen + count]
        seen += count
        rate = float(visit_schedule(1.0, jnp.int32(count), jnp.int32(seen), 1.0))
        value += rate * (new.mean() - value)
    np.testing.assert_allclose(value, targets.mean(), rtol=1e-5)
