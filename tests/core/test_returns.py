"""Advantages and returns against loops, hand-worked windows and the identities that tie them together."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.core import returns

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NUM_STEPS = 7

generalized_advantages = jax.jit(returns.generalized_advantages)
lambda_returns = jax.jit(returns.lambda_returns)
discounted_returns = jax.jit(returns.discounted_returns)


class Window(NamedTuple):
    """A window of steps, `[B, T]` each."""

    rewards: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    discounts: np.ndarray
    traces: np.ndarray


def make_window(seed: int, batch: int = 3, num_steps: int = NUM_STEPS) -> Window:
    """Random steps; terminations and time limits fall anywhere, next_values follow the values elsewhere."""
    rng = np.random.default_rng(seed)
    shape = (batch, num_steps)
    values_and_last = rng.normal(size=(batch, num_steps + 1))
    kinds = rng.choice(["other", "terminated", "truncated"], p=[0.6, 0.2, 0.2], size=shape)
    next_values = np.where(kinds == "other", values_and_last[:, 1:], rng.normal(size=shape))
    discounts = np.where(kinds == "terminated", 0.0, rng.uniform(0.5, 1.0, shape))
    traces = np.where(kinds == "other", rng.uniform(0.0, 1.0, shape), 0.0)
    window = (rng.normal(size=shape), values_and_last[:, :-1], next_values, discounts, traces)
    return Window(*(x.astype(np.float32) for x in window))


def advantages_of(window: Window, mask: np.ndarray | None = None) -> np.ndarray:
    mask = np.ones(window.rewards.shape, bool) if mask is None else mask
    return np.asarray(generalized_advantages(*map(jnp.asarray, window), jnp.asarray(mask)))


def lambda_returns_of(window: Window, mask: np.ndarray | None = None) -> np.ndarray:
    mask = np.ones(window.rewards.shape, bool) if mask is None else mask
    w = Window(*map(jnp.asarray, window))
    return np.asarray(lambda_returns(w.rewards, w.next_values, w.discounts, w.traces, jnp.asarray(mask)))


def loop_advantages(window: Window) -> np.ndarray:
    """The sum that defines GAE, forwards from every step, in float64."""
    r, v, v_next, d, trace = (x.astype(np.float64) for x in window)
    deltas = r + d * v_next - v
    advantages = np.zeros_like(deltas)
    for b, t in np.ndindex(*deltas.shape):
        weight = 1.0
        for k in range(t, deltas.shape[1]):
            advantages[b, t] += weight * deltas[b, k]
            weight *= d[b, k] * trace[b, k]
    return advantages


def mixed_n_step_returns(window: Window) -> np.ndarray:
    """The lambda-return as a mixture of n-step returns, weighted (1 - l_1), l_1 (1 - l_2)...

    The longest n-step return of each start takes all the weight that is left, as in rlax.
    """
    r, _, v_next, d, trace = (x.astype(np.float64) for x in window)
    mixed = np.zeros_like(r)
    num_steps = r.shape[1]
    for b, t in np.ndindex(*r.shape):
        reward_sum, discount, weight = 0.0, 1.0, 1.0
        for k in range(t, num_steps):
            reward_sum += discount * r[b, k]
            discount *= d[b, k]
            stop_here = 1.0 if k == num_steps - 1 else 1.0 - trace[b, k]
            mixed[b, t] += weight * stop_here * (reward_sum + discount * v_next[b, k])
            weight *= trace[b, k]
    return mixed


def loop_n_step_returns(window: Window, n: int) -> np.ndarray:
    r, _, v_next, d, _ = (x.astype(np.float64) for x in window)
    out = np.zeros_like(r)
    for b, t in np.ndindex(*r.shape):
        last = min(t + n, r.shape[1]) - 1
        discount = 1.0
        for k in range(t, last + 1):
            out[b, t] += discount * r[b, k]
            discount *= d[b, k]
        out[b, t] += discount * v_next[b, last]
    return out


@pytest.mark.parametrize("seed", range(5))
def test_advantages_equal_the_sum_that_defines_them(seed):
    window = make_window(seed)
    np.testing.assert_allclose(advantages_of(window), loop_advantages(window), **TOLERANCE)


@pytest.mark.parametrize("seed", range(5))
def test_lambda_returns_equal_the_mixture_of_n_step_returns(seed):
    window = make_window(seed)
    np.testing.assert_allclose(lambda_returns_of(window), mixed_n_step_returns(window), **TOLERANCE)


@pytest.mark.parametrize("n", [1, 2, 3, NUM_STEPS, NUM_STEPS + 4])
def test_n_step_returns_equal_the_loop(n):
    window = make_window(n)
    w = Window(*map(jnp.asarray, window))
    result = returns.n_step_returns(w.rewards, w.next_values, w.discounts, n)
    np.testing.assert_allclose(result, loop_n_step_returns(window, n), **TOLERANCE)


def test_three_steps_worked_by_hand():
    ones = np.ones((1, 3), np.float32)
    window = Window(
        rewards=np.array([[1.0, 2.0, 3.0]], np.float32),
        values=np.array([[10.0, 20.0, 30.0]], np.float32),
        next_values=np.array([[20.0, 30.0, 40.0]], np.float32),
        discounts=0.5 * ones,
        traces=0.5 * ones,
    )
    # Deltas: 1 + 10 - 10 = 1; 2 + 15 - 20 = -3; 3 + 20 - 30 = -7; discount * trace = 1/4.
    np.testing.assert_array_equal(advantages_of(window), [[1 + (-3 - 7 / 4) / 4, -3 - 7 / 4, -7.0]])
    # G_2 = 3 + 20 = 23; G_1 = 2 + (15 + 11.5) / 2 = 15.25; G_0 = 1 + (10 + 7.625) / 2 = 9.8125.
    np.testing.assert_array_equal(lambda_returns_of(window), [[9.8125, 15.25, 23.0]])
    w = Window(*map(jnp.asarray, window))
    # 1 + 2/2 + 30/4; 2 + 3/2 + 40/4; 3 + 40/2.
    np.testing.assert_array_equal(returns.n_step_returns(w.rewards, w.next_values, w.discounts, 2), [[9.5, 13.5, 23.0]])
    # 3 + 8/2 = 7; 2 + 7/2 = 5.5; 1 + 5.5/2 = 3.75.
    np.testing.assert_array_equal(
        discounted_returns(w.rewards, w.discounts, jnp.array([8.0]), jnp.ones((1, 3))),
        [[3.75, 5.5, 7.0]],
    )


@pytest.mark.parametrize("seed", range(5))
def test_advantages_plus_values_are_lambda_returns(seed):
    window = make_window(seed)
    np.testing.assert_allclose(advantages_of(window) + window.values, lambda_returns_of(window), **TOLERANCE)


def test_lambda_zero_is_the_one_step_error():
    window = make_window(0)._replace(traces=np.zeros((3, NUM_STEPS), np.float32))
    target = window.rewards + window.discounts * window.next_values
    np.testing.assert_allclose(advantages_of(window), target - window.values, **TOLERANCE)
    np.testing.assert_allclose(lambda_returns_of(window), target, **TOLERANCE)


def test_lambda_one_is_the_discounted_return():
    window = make_window(0)
    discounts = np.full((3, NUM_STEPS), 0.9, np.float32)
    next_values = np.concatenate([window.values[:, 1:], window.next_values[:, -1:]], axis=1)
    window = window._replace(discounts=discounts, next_values=next_values, traces=np.ones_like(discounts))
    discounted = discounted_returns(
        jnp.asarray(window.rewards),
        jnp.asarray(discounts),
        jnp.asarray(next_values[:, -1]),
        jnp.ones((3, NUM_STEPS)),
    )
    np.testing.assert_allclose(lambda_returns_of(window), discounted, **TOLERANCE)
    np.testing.assert_allclose(advantages_of(window) + window.values, discounted, **TOLERANCE)


def test_n_step_return_of_the_whole_window_is_the_lambda_return_at_one():
    window = make_window(1)._replace(traces=np.ones((3, NUM_STEPS), np.float32))
    w = Window(*map(jnp.asarray, window))
    whole = returns.n_step_returns(w.rewards, w.next_values, w.discounts, NUM_STEPS)
    np.testing.assert_allclose(whole, lambda_returns_of(window), **TOLERANCE)


def test_one_step_return_is_the_lambda_return_at_zero():
    window = make_window(2)._replace(traces=np.zeros((3, NUM_STEPS), np.float32))
    w = Window(*map(jnp.asarray, window))
    one_step = returns.n_step_returns(w.rewards, w.next_values, w.discounts, 1)
    np.testing.assert_allclose(one_step, lambda_returns_of(window), **TOLERANCE)


def test_n_below_one_is_refused_by_name():
    x = jnp.zeros((1, 3))
    with pytest.raises(ValueError, match="n is 0"):
        returns.n_step_returns(x, x, x, 0)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("estimate", [advantages_of, lambda_returns_of])
def test_the_end_of_an_episode_hides_what_comes_after(estimate, end):
    shape = (1, NUM_STEPS)
    window = make_window(3, batch=1)._replace(
        discounts=np.full(shape, 0.9, np.float32), traces=np.full(shape, 0.8, np.float32)
    )
    window.traces[:, 3] = 0.0
    window.discounts[:, 3] = 0.0 if end == "terminated" else 0.9
    changed = Window(*(x.copy() for x in window))
    changed.rewards[:, 4:] += 100.0
    changed.values[:, 4:] += 100.0
    changed.next_values[:, 4:] += 100.0
    np.testing.assert_array_equal(estimate(changed)[:, :4], estimate(window)[:, :4])
    assert (estimate(changed)[:, 4:] != estimate(window)[:, 4:]).all()


def test_a_time_limit_bootstraps_from_the_final_observation_and_a_termination_does_not():
    window = make_window(4, batch=1)
    window.traces[:, 3], window.discounts[:, 3], window.next_values[:, 3] = 0.0, 0.9, 50.0
    np.testing.assert_allclose(lambda_returns_of(window)[:, 3], window.rewards[:, 3] + 45.0, rtol=1e-6)
    window.discounts[:, 3] = 0.0
    np.testing.assert_array_equal(lambda_returns_of(window)[:, 3], window.rewards[:, 3])


@pytest.mark.parametrize("estimate", [advantages_of, lambda_returns_of])
def test_next_value_is_not_read_where_the_discount_is_zero(estimate):
    window = make_window(5)
    garbage = np.where(window.discounts == 0, np.nan, window.next_values)
    assert np.isnan(garbage).any()
    np.testing.assert_array_equal(estimate(window._replace(next_values=garbage)), estimate(window))
    w = Window(*map(jnp.asarray, window))
    np.testing.assert_array_equal(
        returns.n_step_returns(w.rewards, jnp.asarray(garbage), w.discounts, 3),
        returns.n_step_returns(w.rewards, w.next_values, w.discounts, 3),
    )


def test_advantages_are_not_weighted_by_the_power_of_gamma_of_their_step():
    window = make_window(6)
    constant = Window(*(np.full((1, 40), x, np.float32) for x in (1.0, 0.0, 0.0, 0.9, 0.5)))
    advantages = advantages_of(constant)[0]
    # Steps 0 and 20 have the same future, so the same value: 1 / (1 - 0.45).
    np.testing.assert_allclose(advantages[[0, 20]], 1 / 0.55, rtol=1e-6)
    np.testing.assert_allclose(advantages_of(window)[:, -1], loop_advantages(window)[:, -1], **TOLERANCE)
    shorter = Window(*(x[:, 2:] for x in window))
    np.testing.assert_array_equal(advantages_of(window)[:, 2:], advantages_of(shorter))


@given(mask=hnp.arrays(bool, 5), seed=st.integers(0, 20), garbage=st.sampled_from([np.nan, np.inf]))
@settings(max_examples=40, deadline=None)
def test_leaving_masked_steps_out_gives_the_same_numbers_for_the_rest(mask, seed, garbage):
    window = make_window(seed, batch=1, num_steps=5)
    if not mask.any():
        mask[0] = True
    dirty = Window(*(np.where(mask, x, garbage).astype(np.float32) for x in window))
    left_out = Window(*(x[:, mask] for x in window))
    for estimate in (advantages_of, lambda_returns_of):
        result = estimate(dirty, mask[None])
        np.testing.assert_allclose(result[:, mask], estimate(left_out), rtol=1e-6, atol=1e-6)
        assert (result[:, ~mask] == 0).all()
    bootstrap = jnp.array([2.0])
    result = discounted_returns(
        jnp.asarray(dirty.rewards), jnp.asarray(dirty.discounts), bootstrap, jnp.asarray(mask[None])
    )
    kept = jnp.asarray(left_out.rewards), jnp.asarray(left_out.discounts)
    expected = discounted_returns(*kept, bootstrap, jnp.ones(kept[0].shape))
    np.testing.assert_allclose(result[:, mask], expected, rtol=1e-6, atol=1e-6)
    assert (np.asarray(result)[:, ~mask] == 0).all()


def test_a_window_that_is_masked_throughout_gives_zeros():
    window = make_window(7)
    nothing = np.zeros((3, NUM_STEPS), bool)
    np.testing.assert_array_equal(advantages_of(window, nothing), np.zeros((3, NUM_STEPS)))
    np.testing.assert_array_equal(lambda_returns_of(window, nothing), np.zeros((3, NUM_STEPS)))


def test_masked_garbage_does_not_reach_the_gradient():
    window = make_window(8)
    mask = np.arange(NUM_STEPS) % 3 != 1
    dirty = Window(*(jnp.asarray(np.where(mask, x, np.nan)) for x in window))
    keep = jnp.broadcast_to(jnp.asarray(mask), (3, NUM_STEPS))
    gradients = jax.grad(lambda w: jnp.sum(jnp.square(generalized_advantages(*w, keep))))(dirty)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[:, ~mask] == 0).all()
    assert all(np.asarray(g).any() for g in gradients)


def test_leading_axes_are_batch_axes_none_included():
    window = make_window(9, batch=4)
    mask = jnp.ones((4, NUM_STEPS))
    batched = generalized_advantages(*map(jnp.asarray, window), mask)
    folded = generalized_advantages(
        *(jnp.asarray(x).reshape(2, 2, NUM_STEPS) for x in window), mask.reshape(2, 2, NUM_STEPS)
    )
    np.testing.assert_array_equal(folded.reshape(4, NUM_STEPS), batched)
    single = generalized_advantages(*(jnp.asarray(x[0]) for x in window), mask[0])
    np.testing.assert_array_equal(single, batched[0])


def test_half_precision_values_give_float32_advantages():
    window = make_window(10)
    arrays = [jnp.asarray(x) for x in window]
    arrays[1] = arrays[1].astype(jnp.bfloat16)
    arrays[2] = arrays[2].astype(jnp.bfloat16)
    advantages = generalized_advantages(*arrays, jnp.ones((3, NUM_STEPS)))
    assert advantages.dtype == jnp.float32
    rounded = window._replace(values=np.asarray(arrays[1], np.float32), next_values=np.asarray(arrays[2], np.float32))
    np.testing.assert_allclose(advantages, loop_advantages(rounded), **TOLERANCE)


def test_jit_traces_once_for_windows_of_one_shape():
    jitted = jax.jit(chex.assert_max_traces(returns.generalized_advantages, 1))
    for seed in range(3):
        window = make_window(seed)
        result = jitted(*map(jnp.asarray, window), jnp.ones((3, NUM_STEPS)))
        np.testing.assert_allclose(result, loop_advantages(window), **TOLERANCE)
