"""How good the judgements of a reward model are: accuracy, calibration and bias towards length; numpy, on the host."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import special


class Interval(NamedTuple):
    """A share and the interval that holds the true one with a given confidence."""

    estimate: float
    low: float
    high: float


class MarginBin(NamedTuple):
    """Accuracy among the examples whose margin lies in [low, high]."""

    low: float
    high: float
    count: int
    accuracy: Interval


class ReliabilityCurve(NamedTuple):
    """What was predicted and what came true, in bins that hold an example at least.

    Attributes:
        predicted: mean probability of each bin, `[N]`.
        observed: share of the bin's examples that came true, `[N]`.
        counts: examples of each bin, `[N]`.
    """

    predicted: Float[np.ndarray, " N"]
    observed: Float[np.ndarray, " N"]
    counts: Int[np.ndarray, " N"]


class LengthBias(NamedTuple):
    """How far a judgement follows length.

    Attributes:
        correlation: Pearson's, of difference in score and difference in length; 0 where one of them does not vary.
        longer_wins: accuracy of always preferring the longer answer, equal lengths counted half.
        longer_preferred: share of the pairs of unequal length in which the model scores the longer answer higher.
    """

    correlation: float
    longer_wins: float
    longer_preferred: float


def wilson_interval(num_successes: int | float, num_trials: int | float, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share; it stays in [0, 1] and is right for few examples too.

    With p = successes / n and z the normal quantile of the confidence:

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
        num_successes: successes; a tie may count half.
        num_trials: n, an effective number where it is not whole; 0 gives an estimate of NaN and the interval [0, 1].
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
    """Wilson's interval of a share whose examples come in groups that may be alike: pairs of one prompt.

    It is Wilson's of a number of examples in place of N: `effective_number`, times (t_{N-1} / t_{G-1})^2, quantiles of
    Student's distribution, because G groups tell little of their own variance. Where no two examples share a group it
    is the very same; where all examples are alike it is Wilson's of G.

    Args:
        correct: 1, 0, or a share between for a tie.
        groups: which group each example belongs to.
        confidence: in (0, 1).

    Returns:
        The share and its interval; NaN and [0, 1] of no examples.

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
    """How many independent examples say as much of the mean as these, which come in G groups.

    `N / max(1, deff)`, where the design effect is the mean's variance by groups over that of independent examples:

        deff = [G / (G - 1) sum_g (sum_{i in g} (x_i - p))^2 / N^2] / [p (1 - p) / N]

    Where all x are alike or there is one group, nothing can be told of the variance, and it is G, the least it can be:
    the interval is then wide, even beside that of examples with one mistake. Where every example is a group of its own
    it is N.

    Args:
        correct: x; 1, 0, or a share between for a tie.
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
    """1 where the chosen answer scores higher, 0 where lower, 1/2 for a tie.

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
    """Accuracy in bins of about equally many examples, from the smallest margins to the largest.

    Args:
        correct: 1, 0, or 1/2 for a tie.
        margins: how clear the case is: by the model (|difference in score|) or by people (a rating's difference).
            Examples of one margin stay in one bin.
        groups: which group each example belongs to, for the intervals.
        num_bins: at most so many.

    Returns:
        The bins that hold an example.
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
        probabilities: what was predicted.
        outcomes: 1 where it came true; 1/2 for a tie.
        num_bins: bins; bin i holds [i / num_bins, (i + 1) / num_bins), the last one its upper end as well.

    Returns:
        The curve; on a calibrated model `observed` equals `predicted`.

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
    """Mean distance of prediction and truth: `sum_b n_b / N |observed_b - predicted_b|`; 0 of an empty curve.

    Reference: Naeini, Cooper and Hauskrecht, 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning.
    """
    total = max(1, int(curve.counts.sum()))
    return float(np.sum(curve.counts * np.abs(curve.observed - curve.predicted)) / total)


def choice_confidence(
    scores: Float[np.ndarray, "N K"], best: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Of choices, the probability that the model gives its own choice, and whether that was people's.

    `max_k softmax(scores)_k`; of a pair `sigmoid(|difference|)`, in [1/2, 1]. (A curve of the probability of the answer
    that happens to be named first would be symmetric, and its lower half would say nothing.)

    Args:
        scores: of K answers to each prompt, logits.
        best: index of the answer that people preferred.

    Returns:
        Probabilities, and 1 or 0 for right or wrong, or 1/n where the preferred one is among n that tie.
    """
    top = scores.max(axis=-1, keepdims=True)
    probabilities = 1 / np.exp(scores - top).sum(axis=-1)
    is_top = scores == top
    correct = is_top[np.arange(len(best)), best] / is_top.sum(axis=-1)
    return probabilities.astype(np.float64), correct


def length_bias(differences: Float[np.ndarray, " N"], length_differences: Num[np.ndarray, " N"]) -> LengthBias:
    """How far a reward model, and people, prefer the longer answer.

    Args:
        differences: score of the chosen answer minus that of the rejected one.
        length_differences: the same of their lengths, in tokens, words or characters.

    Returns:
        Correlation and shares; a share over no pairs is NaN.

    Reference: Singhal et al., 2023, A Long Way to Go: Investigating Length Correlations in RLHF.
    """
    lengths = np.asarray(length_differences, np.float64)
    # Which of the two was chosen must not matter: each pair counts both ways round, so both means are 0.
    norm = np.sqrt(np.sum(differences**2) * np.sum(lengths**2))
    correlation = float(np.sum(differences * lengths) / norm) if norm > 0 else 0.0
    unequal = lengths != 0
    agrees = correctness(differences[unequal] * np.sign(lengths[unequal]))
    return LengthBias(correlation, _mean(correctness(lengths)), _mean(agrees))


def pearson(x: Num[np.ndarray, " N"], y: Num[np.ndarray, " N"]) -> float:
    """Pearson's correlation, `cov(x, y) / (std(x) std(y))`; 0 where one of them does not vary."""
    x, y = (np.asarray(each, np.float64) - np.mean(each) for each in (x, y))
    norm = np.sqrt(np.sum(x**2) * np.sum(y**2))
    return float(np.sum(x * y) / norm) if norm > 0 else 0.0


def _mean(values: Float[np.ndarray, " N"]) -> float:
    return float(values.mean()) if len(values) else float("nan")
