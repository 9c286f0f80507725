"""KL estimators against exact expectations, and the controller of the coefficient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.core import kl

LOGITS = hnp.arrays(np.float32, (5,), elements=st.floats(-2, 2, width=32))


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3], ids=["k1", "k3"])
@given(logits=LOGITS, reference_logits=LOGITS)
@settings(max_examples=50, deadline=None)
def test_k1_and_k3_are_unbiased(estimator, logits, reference_logits):
    log_pi = logits - np.logaddexp.reduce(logits.astype(np.float64))
    log_ref = reference_logits - np.logaddexp.reduce(reference_logits.astype(np.float64))
    exact = np.sum(np.exp(log_pi) * (log_pi - log_ref))
    samples = estimator(jnp.asarray(log_pi, jnp.float32), jnp.asarray(log_ref, jnp.float32))
    expectation = np.sum(np.exp(log_pi) * np.asarray(samples, np.float64))
    np.testing.assert_allclose(expectation, exact, rtol=1e-5, atol=1e-5)


def test_k2_is_biased_but_agrees_near_equality():
    log_pi = np.log([0.2, 0.3, 0.5])
    for size, tolerance in [(1e-1, 2e-2), (1e-2, 2e-3)]:
        log_ref = np.log(np.array([0.2 + size / 5, 0.3 - size / 5, 0.5]))
        exact = np.sum(np.exp(log_pi) * (log_pi - log_ref))
        samples = kl.k2(jnp.asarray(log_pi, jnp.float32), jnp.asarray(log_ref, jnp.float32))
        relative_bias = abs(np.sum(np.exp(log_pi) * np.asarray(samples)) / exact - 1)
        assert relative_bias < tolerance


def test_estimators_worked_by_hand():
    log_probs, reference_log_probs = jnp.log(jnp.array([0.5, 0.25])), jnp.log(jnp.array([0.25, 0.5]))
    log_2 = np.log(2)
    np.testing.assert_allclose(kl.k1(log_probs, reference_log_probs), [log_2, -log_2], rtol=1e-6)
    np.testing.assert_allclose(kl.k2(log_probs, reference_log_probs), [log_2**2 / 2] * 2, rtol=1e-6)
    np.testing.assert_allclose(kl.k3(log_probs, reference_log_probs), [0.5 - 1 + log_2, 2 - 1 - log_2], rtol=1e-6)


def test_k3_is_never_negative_and_keeps_its_digits_near_zero():
    log_ratio = np.concatenate([np.logspace(-12, 1, 2000), -np.logspace(-12, 1, 2000), [0.0]])
    log_ratio = log_ratio.astype(np.float32)
    estimates = np.asarray(kl.k3(jnp.zeros(log_ratio.shape), jnp.asarray(log_ratio)))
    assert (estimates >= 0).all()
    assert estimates[-1] == 0
    small = np.array([1e-3, -1e-3], np.float32)
    exact = np.expm1(small.astype(np.float64)) - small
    np.testing.assert_allclose(kl.k3(jnp.zeros(2), jnp.asarray(small)), exact, rtol=1e-3)


def test_gradients_of_the_estimators_have_the_right_sign():
    reference = jnp.array([-1.0])
    for estimator in (kl.k1, kl.k2, kl.k3):
        gradient = jax.grad(lambda x, f=estimator: f(x, reference).sum())(jnp.array([-0.5]))
        assert gradient[0] > 0


@pytest.mark.parametrize(
    ("observed_kl", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 512 / 10_000),
        (60.0, 1 + 0.2 * 512 / 10_000),
        (5.4, 1 - 0.1 * 512 / 10_000),
        (0.0, 1 - 0.2 * 512 / 10_000),
    ],
)
def test_adaptive_coefficient_worked_by_hand(observed_kl, factor):
    result = kl.adaptive_kl_coefficient(0.15, observed_kl, target=6.0, horizon=10_000, num_episodes=512)
    np.testing.assert_allclose(result, 0.15 * factor, rtol=1e-6)


def test_adaptive_coefficient_vmaps_and_jits_over_everything():
    coefficients, observed = jnp.array([0.1, 0.2]), jnp.array([12.0, 3.0])

    def update(coefficient, observed_kl, target):
        return kl.adaptive_kl_coefficient(coefficient, observed_kl, target=target, horizon=1000, num_episodes=100)

    result = jax.jit(jax.vmap(update))(coefficients, observed, jnp.array([6.0, 6.0]))
    np.testing.assert_allclose(result, [0.1 * 1.02, 0.2 * 0.98], rtol=1e-6)
