"""How far people agree beyond chance."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import krippendorff
import numpy as np


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
