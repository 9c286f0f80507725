"""Baseline for reward models: logistic regression on the word counts of completions."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# SciPy is imported where it is used: the settings here belong to commands whose help is to come at once.
import numpy as np
from jaxtyping import Float64, Int

from jaxrl_lm.errors import InputError

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


@dataclass(frozen=True, kw_only=True)
class BagOfWordsConfig:
    """Settings of the baseline.

    Attributes:
        l2: weight of the L2 penalty; the loss is a sum over examples.
        min_texts: minimum number of texts in which a word must occur.
        max_words: maximum number of words; the most frequent are kept.
    """

    l2: float = 1.0
    min_texts: int = 2
    max_words: int = 20_000

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise InputError(f"baseline.l2={self.l2} must be above 0: without it separable data has no solution")
        for name in ("min_texts", "max_words"):
            if getattr(self, name) < 1:
                raise InputError(f"baseline.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class BagOfWords:
    """A linear score of word counts: `bias + sum_w weight_w count_w`.

    Attributes:
        words: column of each word.
        weights: one per word.
        bias: 0 if fitted to comparisons.
    """

    words: dict[str, int]
    weights: Float64[np.ndarray, " V"]
    bias: float

    def score(self, texts: Sequence[str]) -> Float64[np.ndarray, " N"]:
        """Scores of texts, logits; unknown words are ignored."""
        return np.asarray(_counts(texts, self.words) @ self.weights + self.bias)

    def strongest(self, num: int) -> tuple[list[str], list[str]]:
        """The words with the largest positive and the largest negative weights."""
        order = np.argsort(self.weights, kind="stable")
        names = list(self.words)
        best = [names[i] for i in order[::-1][:num] if self.weights[i] > 0]
        return best, [names[i] for i in order[:num] if self.weights[i] < 0]


def fit_choices(
    groups: Sequence[Sequence[str]], best: Int[np.ndarray, " N"], config: BagOfWordsConfig | None = None
) -> BagOfWords:
    """Fit to choices among completions of the same prompt.

        sum_n -log softmax_k(w . c_nk)[best_n] + l2 / 2 |w|^2

    With two completions per group this is logistic regression on the difference of their counts. The loss is convex
    and L-BFGS starts from 0, so equal data give equal weights.

    Args:
        groups: N times K completions, with the same K of at least 2 throughout.
        best: index of the preferred completion of each group.
        config: settings; None for the defaults.

    Returns:
        The model, with bias 0.

    Reference: McFadden, 1974, Conditional Logit Analysis of Qualitative Choice Behavior.
    """
    from scipy import special

    config = config or BagOfWordsConfig()
    texts = [text for group in groups for text in group]
    words = _vocabulary(texts, config)
    counts, size = _counts(texts, words), len(groups[0])
    is_best = np.eye(size)[np.asarray(best)]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_probs = special.log_softmax((counts @ weights).reshape(-1, size), axis=-1)
        gradient = counts.T @ (np.exp(log_probs) - is_best).ravel() + config.l2 * weights
        return float(-np.sum(log_probs * is_best) + config.l2 / 2 * weights @ weights), gradient

    return BagOfWords(words=words, weights=_minimise(loss, len(words)), bias=0.0)


def fit_labels(
    texts: Sequence[str], labels: Int[np.ndarray, " N"], config: BagOfWordsConfig | None = None
) -> BagOfWords:
    """Fit to thumbs up and down.

        sum_n log(1 + exp(-y_n (w . c_n + b))) + l2 / 2 |w|^2,   y in {-1, +1}; b is free

    Args:
        texts: N completions.
        labels: 1 for good, 0 for bad.
        config: settings; None for the defaults.
    """
    from scipy import sparse, special

    config = config or BagOfWordsConfig()
    words = _vocabulary(texts, config)
    counts = sparse.hstack([_counts(texts, words), np.ones((len(texts), 1))], format="csr")
    penalty = np.full(len(words) + 1, config.l2)
    penalty[-1] = 1e-6  # with equal labels, a free bias would diverge
    targets = np.asarray(labels, np.float64)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = counts @ weights
        value = np.sum(np.logaddexp(0, scores) - targets * scores) + penalty / 2 @ weights**2
        return float(value), counts.T @ (special.expit(scores) - targets) + penalty * weights

    found = _minimise(loss, len(words) + 1)
    return BagOfWords(words=words, weights=found[:-1], bias=float(found[-1]))


def split_words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, with inner apostrophes."""
    return _WORD.findall(text.lower())


def _vocabulary(texts: Iterable[str], config: BagOfWordsConfig) -> dict[str, int]:
    num_texts: Counter[str] = Counter()
    for text in texts:
        num_texts.update(set(split_words(text)))
    frequent = [(-count, word) for word, count in num_texts.items() if count >= config.min_texts]
    return {word: column for column, (_, word) in enumerate(sorted(frequent)[: config.max_words])}


def _counts(texts: Sequence[str], words: dict[str, int]) -> Any:
    from scipy import sparse

    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        for word, count in Counter(split_words(text)).items():
            if word in words:
                rows.append(row)
                columns.append(words[word])
                values.append(float(count))
    return sparse.csr_array((values, (rows, columns)), shape=(len(texts), len(words)), dtype=np.float64)


def _minimise(loss, num_weights: int) -> Float64[np.ndarray, " V"]:
    from scipy import optimize

    if num_weights == 0:
        return np.zeros(0)
    start = np.zeros(num_weights)
    return optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
