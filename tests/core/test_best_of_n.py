"""Best-of-n against all choices, one by one, and its limits."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.core.best_of_n import best_of_n_kl, expected_best_of_n


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_equals_the_mean_over_all_choices(n: int) -> None:
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=(2, 3, 7))
    every = [
        [
            values[row, max(chosen, key=lambda place: scores[row, place])]
            for chosen in itertools.combinations(range(7), n)
        ]
        for row in range(3)
    ]
    found = expected_best_of_n(jnp.float32(scores), jnp.float32(values), n)
    np.testing.assert_allclose(found, np.mean(every, axis=-1), rtol=1e-5, atol=1e-6)


def test_two_of_three_by_hand() -> None:
    # Pairs of scores (1, 2, 3): the best is 2 once and 3 twice.
    scores = jnp.array([3.0, 1.0, 2.0])
    assert float(expected_best_of_n(scores, scores, 2)) == pytest.approx((2 + 3 + 3) / 3, rel=1e-6)
    assert float(expected_best_of_n(scores, jnp.array([10.0, 0.0, 4.0]), 2)) == pytest.approx(8.0, rel=1e-6)


def test_many_answers_do_not_overflow() -> None:
    ones = jnp.ones(4096)
    assert float(expected_best_of_n(jnp.arange(4096.0), ones, 1000)) == pytest.approx(1.0, rel=1e-3)


def test_one_answer_is_no_divergence_and_more_approach_log_n() -> None:
    found = best_of_n_kl(jnp.array([1.0, 2.0, 1000.0]))
    np.testing.assert_allclose(found, [0.0, np.log(2) - 0.5, np.log(1000) - 0.999], rtol=1e-6)
