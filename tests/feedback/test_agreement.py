"""Agreement against worked examples of the papers, a loop, and identities."""

from collections.abc import Hashable, Mapping
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_lm.feedback import cohen_kappa, krippendorff_alpha

# Krippendorff, 2011, data D: four observers, twelve units, 0 where an observer did not judge.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]

verdicts_of_items = st.lists(st.dictionaries(st.integers(0, 4), st.sampled_from("xyz"), max_size=5), max_size=8)


def test_kappa_of_cohens_worked_example() -> None:
    counts = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
    pairs = [(i, j) for i, row in enumerate(counts) for j, count in enumerate(row) for _ in range(count)]
    # p_o = 140 / 200, p_c = 0.6 * 0.5 + 0.3 * 0.3 + 0.1 * 0.2
    assert cohen_kappa([i for i, _ in pairs], [j for _, j in pairs]) == pytest.approx((0.70 - 0.41) / (1 - 0.41))


def test_alpha_of_krippendorffs_worked_example() -> None:
    units = [{o: row[unit] for o, row in enumerate(OBSERVERS) if row[unit]} for unit in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


@given(verdicts_of_items)
def test_alpha_is_one_minus_observed_over_expected_disagreement(units: list[Mapping[Hashable, Hashable]]) -> None:
    assert krippendorff_alpha(units) == pytest.approx(_alpha_by_loops(units))


def _alpha_by_loops(units: list[Mapping[Hashable, Hashable]]) -> float | None:
    pairable = [list(unit.values()) for unit in units if len(unit) > 1]
    pooled = [verdict for unit in pairable for verdict in unit]
    if len(set(pooled)) < 2:
        return None
    observed = sum(sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in pairable) / len(pooled)
    expected = sum(a != b for a, b in permutations(pooled, 2)) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / expected


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("xyz")), min_size=1))
def test_kappa_is_symmetric_and_one_only_in_full_agreement(pairs: list[tuple[str, str]]) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    kappa = cohen_kappa(first, second)
    assert kappa == pytest.approx(cohen_kappa(second, first))
    if kappa is None:
        assert len(set(first + second)) == 1
    else:
        assert (kappa == pytest.approx(1.0)) == (first == second)


def test_kappa_of_independent_verdicts_is_zero() -> None:
    assert cohen_kappa(["x", "x", "y", "y"], ["x", "y", "x", "y"]) == 0


def test_agreement_is_undefined_without_shared_items_or_with_one_verdict_only() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["x", "x"], ["x", "x"]) is None
    assert krippendorff_alpha([{1: "x"}, {2: "y"}]) is None
    assert krippendorff_alpha([{1: "x", 2: "x"}]) is None
