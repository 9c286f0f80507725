"""The clipped surrogate, REINFORCE, group advantages and the diagnostics of a policy update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.core import masked, policy_losses

CLIP = 0.2


def surrogate_at(ratio: float, advantage: float, clip_range: float = CLIP) -> tuple[float, float]:
    """Loss of one step, and its gradient with respect to the log-prob."""

    def loss(log_prob):
        return policy_losses.clipped_surrogate(log_prob, jnp.zeros(1), jnp.array([advantage]), clip_range).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.log(jnp.array([ratio])))
    return float(value), float(gradient[0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # has already moved far enough towards a good action
        (0.5, 2.0, -1.0, -1.0),  # moved the wrong way: no clipping
        (0.5, -2.0, 1.6, 0.0),  # has already moved far enough away from a bad action
        (1.5, -2.0, 3.0, 3.0),  # moved the wrong way: no clipping
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_surrogate_worked_by_hand(ratio, advantage, loss, gradient):
    np.testing.assert_allclose(surrogate_at(ratio, advantage), (loss, gradient), rtol=1e-6, atol=1e-7)


@given(
    log_ratio=hnp.arrays(np.float32, (2, 3), elements=st.floats(-2, 2, width=32)),
    advantages=hnp.arrays(np.float32, (2, 3), elements=st.floats(-5, 5, width=32)),
    clip_range=st.floats(0.0625, 0.75, width=32),
)
@settings(max_examples=50, deadline=None)
def test_surrogate_equals_the_loop_and_never_falls_below_the_unclipped_loss(log_ratio, advantages, clip_range):
    old = np.full((2, 3), -1.5, np.float32)
    log_probs = old + log_ratio
    result = policy_losses.clipped_surrogate(
        jnp.asarray(log_probs), jnp.asarray(old), jnp.asarray(advantages), clip_range
    )
    for index in np.ndindex(2, 3):
        ratio = np.exp(np.float64(log_probs[index]) - old[index])
        clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
        expected = max(-advantages[index] * ratio, -advantages[index] * clipped)
        np.testing.assert_allclose(result[index], expected, rtol=1e-5, atol=1e-6)
        assert result[index] >= -advantages[index] * ratio - 1e-5


def test_gradient_at_ratio_one_is_that_of_reinforce():
    log_probs, advantages = jnp.array([[-0.3, -2.0, -1.0]]), jnp.array([[1.0, -2.0, 0.5]])
    of_surrogate = jax.grad(lambda x: policy_losses.clipped_surrogate(x, log_probs, advantages, CLIP).sum())(log_probs)
    # The loss -A log pi has the gradient -A.
    np.testing.assert_allclose(of_surrogate, -advantages, rtol=1e-6)


def test_a_sweep_over_clip_ranges_vmaps():
    log_probs, old = jnp.array([[0.0, 0.5, -0.5]]), jnp.zeros((1, 3))
    advantages, clip_ranges = jnp.array([[1.0, 1.0, -1.0]]), jnp.array([0.1, 0.2, 0.4])
    swept = jax.vmap(policy_losses.clipped_surrogate, in_axes=(None, None, None, 0))(
        log_probs, old, advantages, clip_ranges
    )
    one_by_one = [policy_losses.clipped_surrogate(log_probs, old, advantages, float(c)) for c in clip_ranges]
    np.testing.assert_allclose(swept, np.stack(one_by_one), rtol=1e-6)
    np.testing.assert_allclose(swept[:, 0, 1], -1.0 - clip_ranges, rtol=1e-6)
    fractions = jax.vmap(
        lambda c: policy_losses.policy_diagnostics(log_probs, old, c, jnp.full((1, 3), 1 / 3))["ratio/clip_fraction"]
    )(jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(fractions, [2 / 3, 1 / 3, 0.0], rtol=1e-6)


def test_group_advantages_worked_by_hand():
    rewards = jnp.array([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
    np.testing.assert_allclose(
        policy_losses.group_advantages(rewards, kind="leave_one_out"),
        [[1 - 8 / 2, 2 - 7 / 2, 6 - 3 / 2], [0.0, 0.0, 0.0]],
        rtol=1e-6,
    )
    std = np.sqrt((4 + 1 + 9) / 2)  # unbiased, as torch.std
    np.testing.assert_allclose(
        policy_losses.group_advantages(rewards, kind="standardized"),
        [[-2 / (std + 1e-4), -1 / (std + 1e-4), 3 / (std + 1e-4)], [0.0, 0.0, 0.0]],
        rtol=1e-6,
    )


@given(rewards=hnp.arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32)))
@settings(max_examples=40, deadline=None)
def test_leave_one_out_baseline_is_the_mean_of_the_others(rewards):
    result = policy_losses.group_advantages(jnp.asarray(rewards), kind="leave_one_out")
    for group, answer in np.ndindex(3, 4):
        others = np.delete(rewards[group].astype(np.float64), answer)
        np.testing.assert_allclose(result[group, answer], rewards[group, answer] - others.mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["leave_one_out", "standardized"])
def test_group_advantages_ignore_a_shift_of_the_rewards_of_a_prompt(kind):
    rewards = jnp.array([[1.0, 2.0, 6.0, 3.0], [0.0, 1.0, 0.0, 1.0]])
    shifted = rewards + jnp.array([[16.0], [-8.0]])
    advantages = policy_losses.group_advantages(rewards, kind=kind)
    np.testing.assert_allclose(policy_losses.group_advantages(shifted, kind=kind), advantages, atol=1e-5)
    np.testing.assert_allclose(advantages.sum(axis=1), np.zeros(2), atol=1e-6)


def test_standardized_advantages_ignore_the_scale_of_the_rewards():
    rewards = jnp.array([[100.0, 200.0, 600.0]])
    np.testing.assert_allclose(
        policy_losses.group_advantages(7 * rewards, kind="standardized"),
        policy_losses.group_advantages(rewards, kind="standardized"),
        rtol=1e-5,
    )


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group_size is 1"):
        policy_losses.group_advantages(jnp.zeros((4, 1)), kind="leave_one_out")


def test_importance_weights_are_truncated_above():
    acting = jnp.log(jnp.array([[0.5, 0.2, 0.1]]))
    now = jnp.log(jnp.array([[0.25, 0.3, 0.9]]))
    np.testing.assert_allclose(policy_losses.truncated_importance(now, acting, 2.0), [[0.5, 1.5, 2.0]], rtol=1e-6)


def test_diagnostics_worked_by_hand():
    ratios = np.array([[1.0, 1.1, 1.5], [0.5, 9.0, 1.0]])
    mask = jnp.array([[1, 1, 1], [1, 0, 1]])
    diagnostics = policy_losses.policy_diagnostics(
        jnp.asarray(np.log(ratios), jnp.float32), jnp.zeros((2, 3)), CLIP, masked.mean_weights(mask)
    )
    kept = np.array([1.0, 1.1, 1.5, 0.5, 1.0])
    expected = {
        "kl/update": np.mean(kept - 1 - np.log(kept)),
        "ratio/clip_fraction": 2 / 5,
        "ratio/mean": 5.1 / 5,
        "ratio/max_error": 0.5,
    }
    assert diagnostics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(diagnostics[name], value, rtol=1e-5, err_msg=name)


def test_diagnostics_of_an_unmoved_policy_are_exact_whatever_masked_steps_hold():
    log_probs = jnp.array([[-1.0, -3.0, jnp.nan, -jnp.inf]])
    diagnostics = policy_losses.policy_diagnostics(log_probs, log_probs, CLIP, jnp.array([[0.5, 0.5, 0, 0]]))
    assert {name: float(value) for name, value in diagnostics.items()} == {
        "kl/update": 0.0,
        "ratio/clip_fraction": 0.0,
        "ratio/mean": 1.0,
        "ratio/max_error": 0.0,
    }
