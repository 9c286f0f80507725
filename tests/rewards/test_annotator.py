"""The simulated person: the higher score wins, as often as Bradley and Terry say."""

import numpy as np
import pytest

from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.annotator import prefers_first


def test_without_noise_the_higher_score_wins_and_equal_ones_by_a_coin():
    first, second = np.array([1.0, 0.0] + [2.0] * 4000), np.array([0.0, 1.0] + [2.0] * 4000)
    chosen = prefers_first(first, second, noise=0.0, seed=0)
    assert chosen[:2].tolist() == [True, False]
    assert abs(chosen[2:].mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize(("noise", "expected"), [(1.0, 1 / (1 + np.exp(-1.5))), (3.0, 1 / (1 + np.exp(-0.5)))])
def test_noise_follows_bradley_and_terry(noise: float, expected: float):
    chosen = prefers_first(np.full(20_000, 2.5), np.full(20_000, 1.0), noise=noise, seed=1)
    assert abs(chosen.mean() - expected) < 4 * 0.5 / np.sqrt(20_000)


def test_scores_however_far_apart_do_not_overflow():
    chosen = prefers_first(np.array([1e300, -1e300]), np.array([0.0, 0.0]), noise=1e-3, seed=0)
    assert chosen.tolist() == [True, False]


def test_the_same_seed_gives_the_same_labels():
    scores = np.linspace(0.0, 1.0, 50)
    labels = [prefers_first(scores, scores[::-1].copy(), noise=1.0, seed=seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert np.any(labels[0] != labels[2])


def test_negative_noise_is_refused():
    with pytest.raises(InputError, match="noise=-1"):
        prefers_first(np.zeros(1), np.zeros(1), noise=-1.0, seed=0)
