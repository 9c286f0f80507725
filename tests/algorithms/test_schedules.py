"""Schedules by hand, at their limits, and traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_lm.algorithms.schedules import (
    ScheduleConfig,
    linear_schedule,
    run_share,
    schedule_factor,
    scheduled,
    visit_schedule,
)
from jaxrl_lm.errors import InputError


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 1.0), (0.125, 0.8), (0.25, 0.6), (0.375, 0.4), (0.5, 0.2), (0.7, 0.2), (1, 0.2)]
)
def test_a_line_by_hand(progress, expected):
    np.testing.assert_allclose(linear_schedule(progress, 1.0, 0.2, 0.5), expected, rtol=1e-6)


def test_a_line_ends_exactly_where_it_should():
    assert float(linear_schedule(0.7, 1.0, 0.05, 0.7)) == np.float32(0.05)


def test_a_line_that_stays_does_not_depend_on_the_share_of_the_run():
    """Not by rounding either: a run that is made longer would draw other numbers."""
    shares = jnp.linspace(0, 1, 1001)
    np.testing.assert_array_equal(linear_schedule(shares, jnp.float32(0.1), jnp.float32(0.1), 1.0), np.float32(0.1))


def test_a_line_without_length_is_its_end():
    assert [float(linear_schedule(progress, 1.0, 0.5, 0)) for progress in (0, 1)] == [0.5, 0.5]


def test_a_line_may_rise():
    np.testing.assert_allclose(linear_schedule(0.25, 0.4, 1.0, 0.75), 0.6, rtol=1e-6)


def test_lines_are_traced_once_and_vmap():
    chex.clear_trace_counter()
    schedule = jax.jit(chex.assert_max_traces(linear_schedule, n=1))
    for progress in (0.0, 0.3, 0.6):
        schedule(jnp.float32(progress), jnp.float32(1.0), jnp.float32(0.0), jnp.float32(0.5))
    swept = jax.vmap(linear_schedule, (None, 0, None, 0))(0.25, jnp.array([1.0, 0.5]), 0.0, jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(swept, [0.5, 0.375])


NUM_UPDATES = 40
CURVES = {
    "constant": (ScheduleConfig(), optax.constant_schedule(1.0)),
    "linear": (ScheduleConfig(kind="linear", end=0.2), optax.linear_schedule(1.0, 0.2, NUM_UPDATES)),
    "cosine": (ScheduleConfig(kind="cosine", end=0.1), optax.cosine_decay_schedule(1.0, NUM_UPDATES, alpha=0.1)),
    "warm-up": (
        ScheduleConfig(warmup_fraction=0.25),
        optax.linear_schedule(0.0, 1.0, 10),
    ),
    "linear after warm-up": (
        ScheduleConfig(kind="linear", warmup_fraction=0.25),
        optax.join_schedules([optax.linear_schedule(0.0, 1.0, 10), optax.linear_schedule(1.0, 0.0, 30)], [10]),
    ),
    "cosine after warm-up": (
        ScheduleConfig(kind="cosine", end=0.1, warmup_fraction=0.25),
        optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, NUM_UPDATES, end_value=0.1),
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_those_of_optax(name):
    config, reference = CURVES[name]
    factors = [schedule_factor(config, run_share(jnp.int32(n), NUM_UPDATES)) for n in range(NUM_UPDATES + 9)]
    np.testing.assert_allclose(factors, [reference(n) for n in range(NUM_UPDATES + 9)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("anneal_updates", [0, None])
def test_without_the_length_of_the_run_a_setting_stays_and_its_share_is_1(anneal_updates):
    config = ScheduleConfig(kind="cosine", warmup_fraction=0.5)
    assert float(scheduled(jnp.float32(3.0), config, jnp.int32(7), anneal_updates)) == 3.0
    assert float(run_share(jnp.int32(7), anneal_updates)) == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"end": 1.5}, "end=1.5"), ({"warmup_fraction": 1.0}, "warmup_fraction=1.0"), ({"end": float("nan")}, "end=nan")],
)
def test_a_bad_schedule_is_refused_by_name_and_value(changes, words):
    with pytest.raises(InputError, match=f"^{words} must be"):
        ScheduleConfig(**changes)


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
