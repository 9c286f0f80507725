"""Ratings of single texts as preferences: pairs by a margin, labels by sign."""

import itertools
import math
import random
from collections import defaultdict

import numpy as np
from jaxtyping import Int64

from jaxrl_lm.data.records import Preference, Rating, UnpairedPreference
from jaxrl_lm.errors import InputError

# Tables round to a few decimals: -2.9995 and -1.9995 are 1.0 apart, whatever binary fractions make of them.
_ROUNDING = 1e-9


def pairs_from_ratings(
    rows: list[Rating], *, margin: float, num_pairs: int, seed: int, prompt: str
) -> list[Preference]:
    """Draw pairs of texts whose ratings are at least a margin apart; the higher one is chosen.

    All such pairs are equally likely, none comes twice, and none has two equal texts. A text may come in several
    pairs: split the rows, not the pairs, into training and held-out ones.

    Args:
        rows: rated texts.
        margin: the least difference of the ratings, above 0, in their unit.
        num_pairs: how many pairs.
        seed: the same seed draws the same pairs.
        prompt: text before both texts of every pair; may be empty.

    Returns:
        `num_pairs` pairs in random order.

    Raises:
        InputError: the margin or the number is out of range, or there are not that many pairs.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise InputError(f"margin is {margin}; give a number above 0")
    if num_pairs < 1:
        raise InputError(f"num_pairs is {num_pairs}; give 1 or more")
    order = np.argsort([row.rating for row in rows], kind="stable")
    ratings = np.array([row.rating for row in rows], np.float64)[order]
    # The partners of the text at place i are the places from first[i] on; all pairs are numbered in that order.
    first = np.searchsorted(ratings, ratings + margin - _ROUNDING, side="left")
    ends = np.cumsum(len(rows) - first)
    num_eligible = int(ends[-1]) if rows else 0
    num_equal = _num_equal_pairs(rows, margin)
    if num_pairs > num_eligible - num_equal:
        raise InputError(
            f"num_pairs is {num_pairs}, but only {num_eligible - num_equal} pairs of different texts have ratings "
            f"{margin} or more apart; lower num_pairs or margin"
        )
    drawn = random.Random(seed).sample(range(num_eligible), min(num_pairs + num_equal, num_eligible))
    worse, better = _places(np.array(drawn, np.int64), first, ends)
    pairs = ((rows[order[i]].text, rows[order[j]].text) for i, j in zip(worse, better, strict=True))
    unequal = ((low, high) for low, high in pairs if low != high)
    return [Preference(prompt=prompt, chosen=high, rejected=low) for low, high in itertools.islice(unequal, num_pairs)]


def labels_from_ratings(rows: list[Rating], *, prompt: str) -> list[UnpairedPreference]:
    """Thumbs up for ratings above 0 and thumbs down for ratings below; ratings of 0 are left out.

    Args:
        rows: rated texts.
        prompt: text before every text; may be empty.

    Returns:
        The labelled texts in the order of the rows, at least one.

    Raises:
        InputError: all ratings are 0.
    """
    labels = [
        UnpairedPreference(prompt=prompt, completion=row.text, label=row.rating > 0) for row in rows if row.rating != 0
    ]
    if not labels:
        raise InputError(f"none of the {len(rows)} ratings is above or below 0; centre them on 0 first")
    return labels


def _places(
    drawn: Int64[np.ndarray, " N"], first: Int64[np.ndarray, " R"], ends: Int64[np.ndarray, " R"]
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """The places, in the order of the ratings, of the worse and the better text of numbered pairs."""
    worse = np.searchsorted(ends, drawn, side="right")
    num_partners = len(first) - first[worse]
    return worse, first[worse] + drawn - (ends[worse] - num_partners)


def _num_equal_pairs(rows: list[Rating], margin: float) -> int:
    """How many pairs a margin apart have one and the same text, rated twice."""
    by_text = defaultdict(list)
    for row in rows:
        by_text[row.text].append(row.rating)
    repeated = (ratings for ratings in by_text.values() if len(ratings) > 1)
    return sum(
        abs(one - other) >= margin - _ROUNDING
        for ratings in repeated
        for one, other in itertools.combinations(ratings, 2)
    )
