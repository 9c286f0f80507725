"""Agreement between annotators beyond chance."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import krippendorff
import numpy as np

from jaxrl_lm.feedback.items import TIE


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two annotators on the same items: kappa = (p_o - p_c) / (1 - p_c).

    p_o is the observed share of agreement; p_c is the share expected if each drew independently from their own
    frequencies.

    Args:
        first: one annotator's verdicts, one per item.
        second: the other annotator's verdicts on the same items.

    Returns:
        at most 1, 0 at chance; None without items, or if both always give the same single verdict.

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
    """Agreement of any number of annotators, each on some items: alpha = 1 - D_o / D_e, nominal.

    D_o is the observed disagreement within items, D_e the disagreement expected if verdicts were assigned at random.

    Args:
        verdicts: for each item, annotator to verdict; items that an annotator did not label are missing.

    Returns:
        at most 1, 0 at chance; None unless some item has two verdicts and not all verdicts are the same.

    Reference: Krippendorff, 2011, "Computing Krippendorff's alpha-reliability".
    """
    pairable = [list(item.values()) for item in verdicts if len(item) > 1]
    kinds = sorted({verdict for item in pairable for verdict in item}, key=repr)
    if len(kinds) < 2:
        return None
    counts = np.array([[item.count(kind) for kind in kinds] for item in pairable])
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def choice_kappa(first: Sequence[str], second: Sequence[str], *, num_completions: int) -> float | None:
    """Agreement of two annotators on which of K completions is best: kappa = (p_o - p_c) / (1 - p_c).

    Completion indices mean nothing across items, so chance is taken over their random order:
    p_c = t_1 t_2 + (1 - t_1)(1 - t_2) / K, where t_1 and t_2 are each annotator's share of ties. p_o is the observed
    share of agreement. Without ties p_c is 1 / K, as in Bennett's S.

    Args:
        first: one annotator's verdicts, one per item: the index of the best completion, or `TIE`.
        second: the other annotator's verdicts on the same items.
        num_completions: K, completions per item.

    Returns:
        at most 1, 0 at chance; None without items, or if both always say tie.

    Reference: Cohen, 1960, "A coefficient of agreement for nominal scales"; Bennett, Alpert and Goldstein, 1954,
    "Communications through limited-response questioning".
    """
    assert len(first) == len(second), f"{len(first)} verdicts and {len(second)}: they must be of the same items"
    num = len(first)
    ties = sum(verdict == TIE for verdict in first), sum(verdict == TIE for verdict in second)
    by_chance = ties[0] * ties[1] + (num - ties[0]) * (num - ties[1]) / num_completions
    if by_chance == num * num:  # holds for no items too
        return None
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / num
    return (observed - by_chance / num**2) / (1 - by_chance / num**2)


def choice_alpha(verdicts: Sequence[Mapping[Any, str]], *, num_completions: int) -> float | None:
    """Agreement of any number of annotators on which of K completions is best: alpha = 1 - D_o / D_e.

    D_o is the observed disagreement within items, as in `krippendorff_alpha`. D_e is the disagreement expected if the n
    verdicts on items with several labels, t of them ties, were assigned to items at random and completions shown in
    random order:
    D_e = 1 - (t(t - 1) + (n - t)(n - t - 1) / K) / (n(n - 1)).

    Args:
        verdicts: for each item, annotator to verdict: the index of the best completion, or `TIE`.
        num_completions: K, completions per item.

    Returns:
        at most 1, 0 at chance; None unless some item has two verdicts and not all are ties.

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
    alike = num_ties * (num_ties - 1) + num_choices * (num_choices - 1) / num_completions
    return 1 - (differing / num) / (1 - alike / (num * (num - 1)))
