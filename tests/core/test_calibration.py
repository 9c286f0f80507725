"""Accuracy, calibration and length bias: cases by hand, loops as reference, limits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from jaxrl_lm.core import calibration as cal

NUMBERS = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-8, 8))


def test_wilson_interval_worked_by_hand():
    # p = 0.8, n = 10, z = 1.96: centre 0.8 + 0.192 = 0.992, spread 1.96 sqrt(0.016 + 0.0096) = 0.3136, scale 1.384.
    estimate, low, high = cal.wilson_interval(8, 10)
    assert estimate == 0.8
    assert low == pytest.approx((0.992 - 0.3137) / 1.38415, abs=1e-3)
    assert high == pytest.approx((0.992 + 0.3137) / 1.38415, abs=1e-3)


@pytest.mark.parametrize(("successes", "trials", "confidence"), [(0, 7, 0.95), (7, 7, 0.99), (31, 50, 0.8)])
def test_wilson_interval_equals_scipys(successes, trials, confidence):
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    _, low, high = cal.wilson_interval(successes, trials, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_nothing_is_everything():
    estimate, low, high = cal.wilson_interval(0, 0)
    assert math.isnan(estimate)
    assert (low, high) == (0.0, 1.0)


def test_effective_number_worked_by_hand():
    # p = 1/2; sums of the groups 1, 0, -1: variance 3/2 * 2 / 36 = 1/12, of independent examples 1/24.
    correct, groups = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]), np.array([7, 9, 7, 3, 3, 9])
    assert cal.effective_number(correct, groups) == pytest.approx(6 / 2)
    # t_5 = 2.5706 and t_2 = 4.3027 at 0.975: three groups are worth 3 * 0.3569 examples for an interval.
    number = 3 * (2.570582 / 4.302653) ** 2
    assert cal.clustered_interval(correct, groups) == pytest.approx(cal.wilson_interval(number / 2, number), rel=1e-5)
    # p = 5/8; sums 3/2 and -3/2: variance 2 * 9/2 / 64 = 9/64, of independent examples 15/512; 8 / (24/5).
    correct = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert cal.effective_number(correct, np.repeat([0, 1], 4)) == pytest.approx(5 / 3)
    # Groups more alike than chance has them are worth no more than their examples.
    assert cal.effective_number(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0, 0, 1, 1])) == 4


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_examples_that_are_all_alike_are_worth_their_groups(value):
    assert cal.effective_number(np.full(9, value), np.repeat([0, 1, 2], 3)) == 3
    interval = cal.clustered_interval(np.full(9, value), np.repeat([0, 1, 2], 3))
    assert interval == pytest.approx(cal.wilson_interval(3 * value, 3))
    assert interval.estimate == value


def test_one_group_is_one_example_and_none_tell_nothing():
    assert cal.effective_number(np.array([1.0, 0.0, 1.0]), np.zeros(3, int)) == 1
    estimate, low, high = cal.clustered_interval(np.zeros(0), np.zeros(0, int))
    assert math.isnan(estimate)
    assert (low, high) == (0.0, 1.0)


@given(halves=st.lists(st.integers(0, 2), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_where_no_two_share_a_group_the_interval_is_exactly_wilsons(halves):
    correct = np.array(halves) / 2
    groups = np.random.default_rng(0).permutation(len(halves))
    assert cal.clustered_interval(correct, groups) == cal.wilson_interval(float(correct.sum()), len(halves))


@pytest.mark.parametrize("num_groups", [3, 10, 40])
def test_clustered_interval_covers_the_true_share_where_wilsons_does_not(num_groups):
    rng = np.random.default_rng(0)
    groups, share, trials = np.repeat(np.arange(num_groups), 15), 0.7, 600
    held = np.zeros(2)
    for _ in range(trials):
        # Right with a chance that differs from prompt to prompt: correlation in a group 1 / (1 + 4) = 0.2.
        chances = rng.beta(4 * share, 4 * (1 - share), num_groups)
        correct = (rng.random(len(groups)) < chances[groups]).astype(np.float64)
        intervals = (
            cal.clustered_interval(correct, groups),
            cal.wilson_interval(float(correct.sum()), len(correct)),
        )
        held += [each.low <= share <= each.high for each in intervals]
    clustered, plain = held / trials
    assert plain < 0.75
    assert clustered > 0.92


def test_a_tie_counts_half():
    np.testing.assert_array_equal(cal.correctness(np.array([2.0, 0.0, -0.1])), [1.0, 0.5, 0.0])


def test_accuracy_by_margin_worked_by_hand():
    margins = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    correct = np.array([1.0, 0.0, 0.5, 0.0, 1.0, 1.0])
    bins = cal.accuracy_by_margin(correct, margins, np.arange(6), num_bins=3)
    assert [(each.low, each.high, each.count) for each in bins] == [(1.0, 2.0, 2), (3.0, 4.0, 2), (5.0, 6.0, 2)]
    assert [each.accuracy.estimate for each in bins] == [0.0, 0.75, 1.0]


def test_examples_of_one_margin_stay_together():
    correct, margins = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 2.0])
    bins = cal.accuracy_by_margin(correct, margins, np.arange(4), num_bins=4)
    assert [(each.low, each.high, each.count) for each in bins] == [(1.0, 1.0, 3), (2.0, 2.0, 1)]
    assert cal.accuracy_by_margin(np.zeros(0), np.zeros(0), np.zeros(0, int)) == []


@given(margins=NUMBERS, num_bins=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_bins_of_margins_hold_every_example_once(margins, num_bins):
    correct = (margins > 0).astype(np.float64)
    bins = cal.accuracy_by_margin(correct, margins, np.arange(len(margins)), num_bins)
    assert sum(each.count for each in bins) == len(margins)
    assert len(bins) <= num_bins
    total = sum(each.count * each.accuracy.estimate for each in bins)
    assert total == pytest.approx(correct.sum())
    assert all(earlier.high < later.low for earlier, later in itertools.pairwise(bins))


def test_reliability_curve_and_calibration_error_worked_by_hand():
    probabilities = np.array([0.1, 0.3, 0.6, 0.8, 1.0])
    outcomes = np.array([0, 1, 0, 1, 1])
    curve = cal.reliability_curve(probabilities, outcomes, num_bins=2)
    np.testing.assert_allclose(curve.predicted, [0.2, 0.8])
    np.testing.assert_allclose(curve.observed, [0.5, 2 / 3])
    np.testing.assert_array_equal(curve.counts, [2, 3])
    assert cal.expected_calibration_error(curve) == pytest.approx(2 / 5 * 0.3 + 3 / 5 * (0.8 - 2 / 3))


def test_empty_bins_are_left_out_and_edges_belong_to_the_upper_bin():
    curve = cal.reliability_curve(np.array([0.0, 0.5, 1.0]), np.array([1, 1, 1]), num_bins=4)
    np.testing.assert_allclose(curve.predicted, [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(curve.counts, [1, 1, 1])


@given(probabilities=hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)), num_bins=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_reliability_curve_equals_a_loop(probabilities, num_bins):
    outcomes = (np.arange(len(probabilities)) % 3 == 0).astype(np.float64)
    bins = {}
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        bins.setdefault(min(int(probability * num_bins), num_bins - 1), []).append((probability, outcome))
    curve = cal.reliability_curve(probabilities, outcomes, num_bins)
    means = [np.mean(bins[place], axis=0) for place in sorted(bins)]
    np.testing.assert_allclose(np.stack([curve.predicted, curve.observed], axis=-1), means, atol=1e-12)
    error = sum(len(each) * abs(np.mean([y - p for p, y in each])) for each in bins.values()) / len(probabilities)
    assert cal.expected_calibration_error(curve) == pytest.approx(error, abs=1e-12)


def test_outcomes_drawn_from_the_probabilities_are_calibrated_and_bolder_ones_are_not():
    generator = np.random.default_rng(0)
    logits = 2 * generator.standard_normal(200_000)
    outcomes = generator.random(len(logits)) < 1 / (1 + np.exp(-logits))
    honest, bold = (
        cal.expected_calibration_error(cal.reliability_curve(1 / (1 + np.exp(-scale * logits)), outcomes))
        for scale in (1, 3)
    )
    assert honest < 0.005
    assert bold > 0.08


def test_confidence_in_a_pair_is_the_sigmoid_of_its_margin():
    scores = np.array([[1.0, 3.0], [2.0, 0.5], [1.0, 1.0]])
    probabilities, correct = cal.choice_confidence(scores, np.array([1, 1, 0]))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp([-2.0, -1.5, 0.0])))
    np.testing.assert_array_equal(correct, [1.0, 0.0, 0.5])


def test_confidence_among_four_worked_by_hand():
    scores = np.log([[1.0, 2.0, 4.0, 1.0], [3.0, 3.0, 1.0, 1.0]])
    probabilities, correct = cal.choice_confidence(scores, np.array([2, 1]))
    np.testing.assert_allclose(probabilities, [0.5, 3 / 8])
    np.testing.assert_allclose(correct, [1.0, 0.5])


def test_confidence_stays_finite_for_huge_scores():
    probabilities, correct = cal.choice_confidence(np.array([[1e4, -1e4]]), np.array([1]))
    np.testing.assert_array_equal(probabilities, [1.0])
    np.testing.assert_array_equal(correct, [0.0])


def test_length_bias_worked_by_hand():
    differences = np.array([1.0, -2.0, 3.0, 0.0])
    lengths = np.array([2, -1, 0, -5])
    bias = cal.length_bias(differences, lengths)
    assert bias.correlation == pytest.approx(4 / math.sqrt(14 * 30))
    assert bias.longer_wins == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert bias.longer_preferred == pytest.approx((1 + 1 + 0.5) / 3)


@given(differences=NUMBERS)
@settings(max_examples=40, deadline=None)
def test_length_bias_does_not_depend_on_which_answer_is_named_first(differences):
    lengths = np.round(differences[::-1] * 3)
    flips = np.where(np.arange(len(differences)) % 2, 1.0, -1.0)
    plain, flipped = cal.length_bias(differences, lengths), cal.length_bias(differences * flips, lengths * flips)
    assert flipped.correlation == pytest.approx(plain.correlation, abs=1e-12)
    assert flipped.longer_preferred == pytest.approx(plain.longer_preferred, nan_ok=True)


def test_score_that_is_the_length_correlates_fully_and_a_constant_not_at_all():
    lengths = np.array([3, -4, 1])
    assert cal.length_bias(lengths * 2.0, lengths).correlation == pytest.approx(1.0)
    assert cal.length_bias(np.zeros(3), lengths) == cal.LengthBias(0.0, pytest.approx(2 / 3), 0.5)


def test_pearson_equals_numpys_and_is_zero_for_a_constant():
    x, y = np.random.default_rng(0).standard_normal((2, 30))
    assert cal.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert cal.pearson(x, np.ones(30)) == 0.0
