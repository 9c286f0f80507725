"""What each token earns, worked by hand: the penalty, the score, and the step that gets it."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.rewards.token_rewards import token_rewards, value_mask_of

RESPONSE_MASK = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], jnp.int32)
LOG_PROBS = jnp.array([[-1.0, -2.0, 0, 0], [-1.0, -1.0, -1.0, -1.0], [-0.5, 0, 0, 0]])
REFERENCE = jnp.array([[-1.5, -1.0, 0, 0], [-1.0, -2.0, -3.0, -0.5], [-0.5, 0, 0, 0]])
KL = np.array([[0.5, -1.0, 0, 0], [0, 1.0, 2.0, -0.5], [0, 0, 0, 0]])
SCORES = jnp.array([0.75, -1.0, 0.25])


def rewards_of(value_mask, **changes):
    arguments = {
        "scores": SCORES,
        "log_probs": LOG_PROBS,
        "reference_log_probs": REFERENCE,
        "response_mask": RESPONSE_MASK,
        "value_mask": value_mask,
        "kl_coefficient": jnp.array(0.1),
    }
    return token_rewards(**{**arguments, **changes})


def test_score_lands_on_the_last_token_with_the_penalty_of_every_token():
    rewards, token_kl = rewards_of(value_mask_of(RESPONSE_MASK, is_paid_after_end=False))
    scores = np.array([[0, 0.75, 0, 0], [0, 0, 0, -1.0], [0.25, 0, 0, 0]])
    np.testing.assert_allclose(token_kl, KL, atol=1e-6)
    np.testing.assert_allclose(rewards, scores - 0.1 * KL, atol=1e-6)


def test_score_lands_one_step_behind_the_last_token():
    value_mask = value_mask_of(RESPONSE_MASK, is_paid_after_end=True)
    np.testing.assert_array_equal(value_mask, [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    rewards, token_kl = rewards_of(value_mask)
    # The second answer fills its row: no step is behind its last token, which is paid itself.
    scores = np.array([[0, 0, 0.75, 0], [0, 0, 0, -1.0], [0, 0.25, 0, 0]])
    np.testing.assert_allclose(token_kl, KL, atol=1e-6)
    np.testing.assert_allclose(rewards, scores - 0.1 * KL, atol=1e-6)


def test_scores_keep_their_fractions_whatever_the_masks_type():
    rewards, _ = rewards_of(RESPONSE_MASK, kl_coefficient=jnp.array(0.0))
    assert rewards.dtype == jnp.float32
    np.testing.assert_array_equal(rewards.sum(axis=1), SCORES)


def test_garbage_behind_the_answer_earns_nothing():
    behind = RESPONSE_MASK == 0
    rewards, token_kl = rewards_of(
        RESPONSE_MASK,
        log_probs=jnp.where(behind, jnp.nan, LOG_PROBS),
        reference_log_probs=jnp.where(behind, -jnp.inf, REFERENCE),
    )
    expected, _ = rewards_of(RESPONSE_MASK)
    np.testing.assert_array_equal(rewards, expected)
    assert np.all(np.asarray(token_kl)[behind] == 0)


@given(lengths=st.lists(st.integers(1, 4), min_size=3, max_size=3), is_paid_after_end=st.booleans())
@settings(deadline=None)  # the first example compiles
def test_each_row_is_paid_its_score_once(lengths, is_paid_after_end):
    response_mask = jnp.asarray(np.arange(4) < np.array(lengths)[:, None], jnp.int32)
    value_mask = value_mask_of(response_mask, is_paid_after_end=is_paid_after_end)
    rewards, _ = rewards_of(value_mask, response_mask=response_mask, kl_coefficient=jnp.array(0.0))
    for row, length in enumerate(lengths):
        expected = np.zeros(4)
        expected[min(length, 3) if is_paid_after_end else length - 1] = SCORES[row]
        np.testing.assert_array_equal(rewards[row], expected)


@pytest.mark.parametrize(
    ("mask", "paid", "paid_after_end"),
    [
        ([1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 1, 1]),
        ([1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0]),
        ([0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0], [0, 1, 0, 1, 1, 1]),
    ],
)
def test_a_row_with_gaps_is_paid_once(mask, paid, paid_after_end):
    response_mask = jnp.array([mask], jnp.int32)
    no_kl = jnp.zeros((1, 6))
    arguments = (jnp.array([2.5]), no_kl, no_kl, response_mask)
    rewards, _ = token_rewards(*arguments, response_mask, jnp.float32(0.1))
    np.testing.assert_array_equal(rewards, 2.5 * np.array([paid]))
    value_mask = value_mask_of(response_mask, is_paid_after_end=True)
    np.testing.assert_array_equal(value_mask, [paid_after_end])
    rewards, _ = token_rewards(*arguments, value_mask, jnp.float32(0.1))
    assert np.flatnonzero(rewards).tolist() == [np.flatnonzero(paid_after_end)[-1]]
    assert float(rewards.sum()) == 2.5
