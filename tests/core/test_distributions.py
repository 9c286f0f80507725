"""Distributions of actions against scipy, hand-worked cases and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxrl_lm.core import distributions as d

LOGITS = jnp.array([[0.0, 1.0, -2.0, 0.5], [3.0, 3.0, 3.0, 3.0]])


def test_categorical_log_prob_and_entropy_worked_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    np.testing.assert_allclose(d.categorical_log_prob(logits, jnp.array([1])), [np.log(0.25)], rtol=1e-6)
    np.testing.assert_allclose(d.categorical_entropy(logits), [1.5 * np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(d.categorical_entropy(LOGITS)[1], np.log(4), rtol=1e-6)


def test_categorical_draws_have_their_probabilities():
    draws = d.sample_categorical(jax.random.key(0), jnp.broadcast_to(LOGITS[0], (20_000, 4)))
    counts = np.bincount(np.asarray(draws), minlength=4)
    expected = special.softmax(np.asarray(LOGITS[0], np.float64)) * 20_000
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_illegal_actions_are_never_drawn_and_leave_finite_gradients():
    mask = jnp.array([False, True, False, True])
    masked = d.mask_logits(jnp.broadcast_to(LOGITS[0], (5_000, 4)), jnp.broadcast_to(mask, (5_000, 4)))
    assert set(np.unique(d.sample_categorical(jax.random.key(1), masked))) == {1, 3}
    two = jnp.array([1.0, 0.5])
    np.testing.assert_allclose(d.categorical_entropy(masked)[0], d.categorical_entropy(two), rtol=1e-6)

    def loss(logits: jax.Array) -> jax.Array:
        legal = d.mask_logits(logits, mask)
        return d.categorical_entropy(legal) + d.categorical_log_prob(legal, jnp.array(1))

    gradient = jax.grad(loss)(LOGITS[0])
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[np.array([0, 2])], 0)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_draws_at_the_ends_of_the_unit_interval_are_legal(monkeypatch: pytest.MonkeyPatch, uniform: float):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, uniform, dtype))
    mask = jnp.array([[False, True, True, False]])
    drawn = d.sample_categorical(jax.random.key(0), d.mask_logits(LOGITS[:1], mask))
    assert int(drawn[0]) == (1 if uniform == 0.0 else 2)


def test_gaussian_agrees_with_scipy():
    mean, log_std = jnp.array([[0.5, -1.0]]), jnp.array([0.3, -0.7])
    actions = jnp.array([[1.0, -2.0]])
    expected = stats.norm(np.asarray(mean), np.exp(np.asarray(log_std)))
    np.testing.assert_allclose(
        d.gaussian_log_prob(actions, mean, log_std), expected.logpdf(np.asarray(actions)).sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(d.gaussian_entropy(log_std), expected.entropy().sum(), rtol=1e-5)


def test_squashed_density_integrates_to_one():
    # In the squashed action's own coordinate: places tanh(raw) unevenly spaced, the trapezoid rule between them.
    raw = jnp.linspace(-6.0, 6.0, 4001)[:, None]
    density = jnp.exp(d.gaussian_log_prob(raw, jnp.full_like(raw, 0.4), jnp.array([-0.2])) - d.squash_log_det(raw))
    assert np.trapezoid(np.asarray(density), np.tanh(np.asarray(raw[:, 0]))) == pytest.approx(1.0, abs=1e-3)


def test_squash_log_det_is_exact_where_tanh_saturates():
    # 1 - tanh(x)^2 = 4 exp(-2x) to first order for large x
    np.testing.assert_allclose(d.squash_log_det(jnp.array([30.0])), np.log(4) - 60, rtol=1e-6)


def test_a_gaussian_with_a_std_for_each_state_equals_scipy():
    rng = np.random.default_rng(0)
    actions, mean, log_std = rng.normal(size=(3, 5, 2)).astype(np.float32)
    expected = stats.norm(mean, np.exp(log_std)).logpdf(actions).sum(-1)
    np.testing.assert_allclose(d.gaussian_log_prob(*map(jnp.asarray, (actions, mean, log_std))), expected, rtol=1e-5)
    entropy = stats.norm(mean, np.exp(log_std)).entropy().sum(-1)
    np.testing.assert_allclose(d.gaussian_entropy(jnp.asarray(log_std)), entropy, rtol=1e-5)
