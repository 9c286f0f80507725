"""The bag of words: its optimum against another solver, by hand, and what it does not know."""

import math

import numpy as np
import pytest
from scipy import optimize

from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.bag_of_words import BagOfWordsConfig, fit_choices, fit_labels, split_words

KEEP_ALL = BagOfWordsConfig(min_texts=1, l2=0.5)
TEXTS = ["good good film", "bad film", "good story", "a bad bad story", "film", "good and bad"]


def counts(text, words):
    return np.array([split_words(text).count(word) for word in words], float)


def test_words_are_lower_case_runs_with_their_apostrophes():
    assert split_words("It's GOOD, isn\u2019t it? 10/10 _ok_ na\u00efve") == [
        *("it's", "good", "isn\u2019t", "it", "10", "10", "ok", "na\u00efve")
    ]


def test_one_word_worked_by_hand():
    # One pair with a count difference of 1: w minimises log(1 + e^-w) + w^2 / 4, so that w (1 + e^w) = 2.
    model = fit_choices([["yes", "no"]], np.array([0]), BagOfWordsConfig(min_texts=1, l2=0.5, max_words=1))
    (weight,) = model.weights
    direction = 1 if "yes" in model.words else -1
    assert direction * weight * (1 + math.exp(direction * weight)) == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_choices_reach_the_optimum_that_another_solver_finds(size):
    groups = [[TEXTS[(i + j) % len(TEXTS)] for j in range(size)] for i in range(len(TEXTS))]
    best = np.array([0, 1, 0, 1, 1, 0]) % size
    model = fit_choices(groups, best, KEEP_ALL)

    def loss(weights):
        total = 0.25 * weights @ weights
        for group, target in zip(groups, best, strict=True):
            scores = [weights @ counts(text, model.words) for text in group]
            total += math.log(sum(map(math.exp, scores))) - scores[target]
        return total

    found = optimize.minimize(loss, np.zeros(len(model.words)), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(model.weights, found.x, atol=1e-3)


def test_labels_reach_the_optimum_that_another_solver_finds():
    labels = np.array([1, 0, 1, 0, 1, 0])
    model = fit_labels(TEXTS, labels, KEEP_ALL)

    def loss(values):
        weights, bias = values[:-1], values[-1]
        total = 0.25 * weights @ weights
        for text, label in zip(TEXTS, labels, strict=True):
            total += math.log1p(math.exp(-(2 * label - 1) * (weights @ counts(text, model.words) + bias)))
        return total

    found = optimize.minimize(loss, np.zeros(len(model.words) + 1), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose([*model.weights, model.bias], found.x, atol=1e-3)


def test_score_is_linear_in_the_counts_and_unknown_words_count_nothing():
    model = fit_labels(TEXTS, np.array([1, 0, 1, 0, 1, 0]), KEEP_ALL)
    one, two, unknown = model.score(["good", "good, GOOD!", "zebra"])
    assert unknown == pytest.approx(model.bias)
    assert two - unknown == pytest.approx(2 * (one - unknown))
    assert one > unknown


def test_same_data_gives_the_same_weights():
    first, second = (fit_choices([TEXTS[:2], TEXTS[2:4]], np.array([0, 0]), KEEP_ALL) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    assert list(first.words) == list(second.words)


def test_rare_words_are_left_out_and_the_most_frequent_kept():
    assert set(fit_labels(TEXTS, np.ones(6, int), BagOfWordsConfig(min_texts=3)).words) == {"good", "bad", "film"}
    assert len(fit_labels(TEXTS, np.ones(6, int), BagOfWordsConfig(min_texts=1, max_words=2)).words) == 2


def test_no_word_in_common_scores_everything_alike():
    model = fit_choices([["one", "two"], ["three", "four"]], np.array([0, 1]), BagOfWordsConfig(min_texts=2))
    np.testing.assert_array_equal(model.score(["one", "anything"]), [0.0, 0.0])


def test_labels_that_are_all_alike_keep_the_bias_finite():
    model = fit_labels(TEXTS, np.ones(6, int), KEEP_ALL)
    assert 3 < model.bias < 20


def test_strongest_words_are_named():
    model = fit_labels(TEXTS, np.array([1, 0, 1, 0, 1, 0]), KEEP_ALL)
    best, worst = model.strongest(1)
    assert (best, worst) == (["film"], ["bad"]) or (best, worst) == (["good"], ["bad"])


@pytest.mark.parametrize(("field", "value"), [("l2", 0.0), ("min_texts", 0), ("max_words", 0)])
def test_unfit_settings_are_refused(field, value):
    with pytest.raises(InputError, match=f"baseline.{field}="):
        BagOfWordsConfig(**{field: value})
