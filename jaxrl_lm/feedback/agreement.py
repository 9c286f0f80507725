"""How far people agree beyond chance."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import krippendorff
import numpy as np

from jaxrl_lm.feedback.items import TIE


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two people on the same items: kappa = (p_o - p_c) / (1 - p_c).

    p_o is the share of items on which they agree; p_c the share expected if each kept their own frequencies and
    drew independently.

    Args:
        first: one person's verdicts, an item each.
        second: the other's, of the same items.

    Returns:
        at most 1, 0 at chance; None with no items, or if both always say the same one thing.

    Reference: Cohen, 1960, "A coefficient of agreement for nominal scales".
    """
    assert len(first) == len(second), f"{len(first)} verdicts and {len(second)}: they must be of the same items"
    num = len(first)
    counts, other_counts = Counter(first), Counter(second)
    by_chance = sum(counts[verdict] * other_counts[verdict] for verdict in counts)
    if by_chance == num * num:  # holds for no items too
        return None
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / num
    return (observed - by_chance / num**2) / (1 - by_chance / num**2)


def krippendorff_alpha(verdicts: Sequence[Mapping[Any, Hashable]]) -> float | None:
    """Agreement of any number of people, each on some of the items: alpha = 1 - D_o / D_e, nominal.

    D_o is the observed disagreement within items, D_e the one expected if verdicts were dealt to items at random.

    Args:
        verdicts: an item each, person to verdict; what a person did not judge is missing.

    Returns:
        at most 1, 0 at chance; None unless some item has two verdicts and they are not all the same.

    Reference: Krippendorff, 2011, "Computing Krippendorff's alpha-reliability".
    """
    pairable = [list(item.values()) for item in verdicts if len(item) > 1]
    kinds = sorted({verdict for item in pairable for verdict in item}, key=repr)
    if len(kinds) < 2:
        return None
    counts = np.array([[item.count(kind) for kind in kinds] for item in pairable])
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def choice_kappa(first: Sequence[str], second: Sequence[str], *, num_answers: int) -> float | None:
    """Agreement of two people on which of K answers is best: kappa = (p_o - p_c) / (1 - p_c).

    The answers of an item have no names that mean the same in the next item, so chance is taken over the lot of
    their order: p_c = t_1 t_2 + (1 - t_1)(1 - t_2) / K, with the shares t_1 and t_2 of their ties. p_o is the share of
    items on which they agree. Without ties p_c is 1 / K, as in Bennett's S.

    Args:
        first: one person's verdicts, an item each: the place of the best answer, or `TIE`.
        second: the other's, of the same items.
        num_answers: K, of an item.

    Returns:
        at most 1, 0 at chance; None with no items, or if both say of all that they are ties.

    Reference: Cohen, 1960, "A coefficient of agreement for nominal scales"; Bennett, Alpert and Goldstein, 1954,
    "Communications through limited-response questioning".
    """
    assert len(first) == len(second), f"{len(first)} verdicts and {len(second)}: they must be of the same items"
    num = len(first)
    ties = sum(verdict == TIE for verdict in first), sum(verdict == TIE for verdict in second)
    by_chance = ties[0] * ties[1] + (num - ties[0]) * (num - ties[1]) / num_answers
    if by_chance == num * num:  # holds for no items too
        return None
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / num
    return (observed - by_chance / num**2) / (1 - by_chance / num**2)


def choice_alpha(verdicts: Sequence[Mapping[Any, str]], *, num_answers: int) -> float | None:
    """Agreement of any number of people on which of K answers is best: alpha = 1 - D_o / D_e.

    D_o is the observed disagreement within items, as for `krippendorff_alpha`. D_e is the one expected if the n
    verdicts of items that several judged, t of them ties, were dealt to items at random, over the lot of the answers'
    order:
    D_e = 1 - (t(t - 1) + (n - t)(n - t - 1) / K) / (n(n - 1)).

    Args:
        verdicts: an item each, person to verdict: the place of the best answer, or `TIE`.
        num_answers: K, of an item.

    Returns:
        at most 1, 0 at chance; None unless some item has two verdicts and they are not all ties.

    Reference: Krippendorff, 2011, "Computing Krippendorff's alpha-reliability".
    """
    pairable = [list(item.values()) for item in verdicts if len(item) > 1]
    num = sum(map(len, pairable))
    num_ties = sum(item.count(TIE) for item in pairable)
    num_choices = num - num_ties
    if not num_choices:
        return None
    differing = sum(
        2 * sum(one != other for one, other in combinations(item, 2)) / (len(item) - 1) for item in pairable
    )
    alike = num_ties * (num_ties - 1) + num_choices * (num_choices - 1) / num_answers
    return 1 - (differing / num) / (1 - alike / (num * (num - 1)))
