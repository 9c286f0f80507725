"""Accuracy, calibration and length bias of a reward model; NumPy, on the host."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import special


class Interval(NamedTuple):
    """A share and its confidence interval."""

    estimate: float
    low: float
    high: float


class MarginBin(NamedTuple):
    """Accuracy on the examples with a margin in [low, high]."""

    low: float
    high: float
    count: int
    accuracy: Interval


class ReliabilityCurve(NamedTuple):
    """Predicted probabilities and observed outcomes, in non-empty bins.

    Attributes:
        predicted: mean probability of each bin, `[N]`.
        observed: share of positive outcomes in each bin, `[N]`.
        counts: examples in each bin, `[N]`.
    """

    predicted: Float[np.ndarray, " N"]
    observed: Float[np.ndarray, " N"]
    counts: Int[np.ndarray, " N"]


class LengthBias(NamedTuple):
    """Length bias of scores.

    Attributes:
        correlation: Pearson's, between differences in score and in length; 0 if either is constant.
        longer_wins: accuracy of always preferring the longer completion; equal lengths count half.
        longer_preferred: share of the pairs of unequal length in which the model scores the longer completion higher.
    """

    correlation: float
    longer_wins: float
    longer_preferred: float


def wilson_interval(num_successes: int | float, num_trials: int | float, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share; it stays in [0, 1] and is accurate for few examples too.

    With p = successes / n and z the normal quantile of the confidence:

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
        num_successes: successes; ties may count half.
        num_trials: n, possibly fractional (effective number); 0 gives an estimate of NaN and the interval [0, 1].
        confidence: in (0, 1).

    Returns:
        The share and its interval.

    Reference: Wilson, 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    if num_trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num_successes / num_trials
    centre = share + z**2 / (2 * num_trials)
    spread = z * (share * (1 - share) / num_trials + z**2 / (4 * num_trials**2)) ** 0.5
    scale = 1 + z**2 / num_trials
    return Interval(share, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def clustered_interval(
    correct: Float[np.ndarray, " N"], groups: Int[np.ndarray, " N"], confidence: float = 0.95
) -> Interval:
    """Wilson's interval of a share for correlated examples in groups, such as pairs of one prompt.

    It replaces N by `effective_number` times (t_{N-1} / t_{G-1})^2, quantiles of Student's distribution, because G
    groups give an imprecise estimate of their variance. It equals Wilson's interval of N if no two examples share a
    group, and that of G if all examples are alike.

    Args:
        correct: 1, 0, or a value in between for a tie.
        groups: group of each example.
        confidence: in (0, 1).

    Returns:
        The share and its interval; NaN and [0, 1] without examples.

    Reference: Korn and Graubard, 1998, Confidence Intervals for Proportions with Small Expected Number of Positive
    Counts Estimated from Survey Data (the quantiles); Franco, Little, Louis and Slud, 2019, Comparative Study of
    Confidence Intervals for Proportions in Complex Sample Surveys.
    """
    if len(correct) == 0:
        return wilson_interval(0, 0, confidence)
    total, number = float(correct.sum()), effective_number(correct, groups)
    num_groups = len(np.unique(groups))
    if 1 < num_groups < len(correct) and np.ptp(correct) > 0:
        tail = (1 + confidence) / 2
        number *= float(special.stdtrit(len(correct) - 1, tail) / special.stdtrit(num_groups - 1, tail)) ** 2
    found = wilson_interval(total * number / len(correct), number, confidence)
    return found._replace(estimate=total / len(correct))


def effective_number(correct: Float[np.ndarray, " N"], groups: Int[np.ndarray, " N"]) -> float:
    """Effective number of independent examples among N examples in G groups.

    `N / max(1, deff)`, where the design effect is the mean's variance with groups over that of independent examples:

        deff = [G / (G - 1) sum_g (sum_{i in g} (x_i - p))^2 / N^2] / [p (1 - p) / N]

    If all x are equal, or there is one group, the variance cannot be estimated, and the result is its minimum, G: the
    interval is then wide, even compared with that of examples with one error. If every example is its own group, the
    result is N.

    Args:
        correct: x; 1, 0, or a value in between for a tie.
        groups: which group each example belongs to.

    Reference: Kish, 1965, Survey Sampling.
    """
    number = len(correct)
    _, places = np.unique(groups, return_inverse=True)
    num_groups = int(places.max(initial=-1)) + 1
    if num_groups in (number, 1) or np.all(correct == correct[0]):
        return float(num_groups)
    share = float(correct.mean())
    sums = np.bincount(places, weights=correct - share)
    by_group = num_groups / (num_groups - 1) * float(np.sum(sums**2)) / number**2
    return number / max(1.0, by_group / (share * (1 - share) / number))


def correctness(differences: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """1 where the chosen completion scores higher, 0 where lower, 1/2 for a tie.

    Args:
        differences: score of the chosen answer minus that of the rejected one.
    """
    return (np.sign(differences) + 1) / 2


def accuracy_by_margin(
    correct: Float[np.ndarray, " N"],
    margins: Float[np.ndarray, " N"],
    groups: Int[np.ndarray, " N"],
    num_bins: int = 5,
) -> list[MarginBin]:
    """Accuracy in bins of about equal size, from the smallest margins to the largest.

    Args:
        correct: 1, 0, or 1/2 for a tie.
        margins: how clear the preference is, by the model (|difference in score|) or by annotators (difference in
            rating). Examples with equal margins share a bin.
        groups: group of each example, for the intervals.
        num_bins: maximum number of bins.

    Returns:
        The non-empty bins.
    """
    if len(margins) == 0:
        return []
    edges = np.unique(np.quantile(margins, np.arange(1, num_bins) / num_bins))
    places = np.searchsorted(edges, margins, side="left")
    bins = []
    for place in np.unique(places):
        inside = places == place
        low, high = float(margins[inside].min()), float(margins[inside].max())
        count = int(inside.sum())
        bins.append(MarginBin(low, high, count, clustered_interval(correct[inside], groups[inside])))
    return bins


def reliability_curve(
    probabilities: Float[np.ndarray, " N"], outcomes: Num[np.ndarray, " N"] | Bool[np.ndarray, " N"], num_bins: int = 10
) -> ReliabilityCurve:
    """Predicted against observed frequency, in bins of equal width over [0, 1].

    Args:
        probabilities: predictions.
        outcomes: 1 or 0; 1/2 for a tie.
        num_bins: number of bins; bin i is [i / num_bins, (i + 1) / num_bins), and the last includes its upper end.

    Returns:
        The curve; for a calibrated model `observed` equals `predicted`.

    Reference: DeGroot and Fienberg, 1983, The Comparison and Evaluation of Forecasters.
    """
    places = np.clip((probabilities * num_bins).astype(np.int64), 0, num_bins - 1)
    counts = np.bincount(places, minlength=num_bins)
    kept = counts > 0
    predicted, observed = (
        np.bincount(places, weights=np.asarray(each, np.float64), minlength=num_bins)[kept] / counts[kept]
        for each in (probabilities, outcomes)
    )
    return ReliabilityCurve(predicted, observed, counts[kept])


def expected_calibration_error(curve: ReliabilityCurve) -> float:
    """Expected calibration error: `sum_b n_b / N |observed_b - predicted_b|`; 0 for an empty curve.

    Reference: Naeini, Cooper and Hauskrecht, 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning.
    """
    total = max(1, int(curve.counts.sum()))
    return float(np.sum(curve.counts * np.abs(curve.observed - curve.predicted)) / total)


def choice_confidence(
    scores: Float[np.ndarray, "N K"], best: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The probability of the model's own choice, and whether annotators made the same choice.

    `max_k softmax(scores)_k`; for a pair `sigmoid(|difference|)`, in [1/2, 1]. (A curve of the probability of the first
    completion would be symmetric, so that its lower half would add nothing.)

    Args:
        scores: scores of the K completions of each prompt, logits.
        best: index of the completion preferred by annotators.

    Returns:
        Probabilities, and 1 or 0 for right or wrong, or 1/n if the preferred one is among n tied.
    """
    top = scores.max(axis=-1, keepdims=True)
    probabilities = 1 / np.exp(scores - top).sum(axis=-1)
    is_top = scores == top
    correct = is_top[np.arange(len(best)), best] / is_top.sum(axis=-1)
    return probabilities.astype(np.float64), correct


def length_bias(differences: Float[np.ndarray, " N"], length_differences: Num[np.ndarray, " N"]) -> LengthBias:
    """How much a reward model, and annotators, prefer longer completions.

    Args:
        differences: score of the chosen answer minus that of the rejected one.
        length_differences: the same for their lengths, in tokens, words or characters.

    Returns:
        Correlation and shares; a share over no pairs is NaN.

    Reference: Singhal et al., 2023, A Long Way to Go: Investigating Length Correlations in RLHF.
    """
    lengths = np.asarray(length_differences, np.float64)
    # Count each pair in both orders, so that the choice does not matter: both means are 0.
    norm = np.sqrt(np.sum(differences**2) * np.sum(lengths**2))
    correlation = float(np.sum(differences * lengths) / norm) if norm > 0 else 0.0
    unequal = lengths != 0
    agrees = correctness(differences[unequal] * np.sign(lengths[unequal]))
    return LengthBias(correlation, _mean(correctness(lengths)), _mean(agrees))


def pearson(x: Num[np.ndarray, " N"], y: Num[np.ndarray, " N"]) -> float:
    """Pearson's correlation, `cov(x, y) / (std(x) std(y))`; 0 if either is constant."""
    x, y = (np.asarray(each, np.float64) - np.mean(each) for each in (x, y))
    norm = np.sqrt(np.sum(x**2) * np.sum(y**2))
    return float(np.sum(x * y) / norm) if norm > 0 else 0.0


def _mean(values: Float[np.ndarray, " N"]) -> float:
    return float(values.mean()) if len(values) else float("nan")
