"""Agreement against worked examples of the papers, a loop, and identities."""

import json
import random
from collections.abc import Callable, Hashable, Mapping
from itertools import permutations
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_lm import feedback
from jaxrl_lm.feedback import (
    Item,
    LabelledItem,
    LabelStore,
    Mode,
    choice_alpha,
    choice_kappa,
    cohen_kappa,
    import_labels,
    krippendorff_alpha,
)
from tests.feedback.conftest import numbered_items

# Krippendorff, 2011, data D: four observers, twelve units, 0 where an observer gave no value.
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


def test_kappa_of_choices_by_hand() -> None:
    # p_o = 11 / 14, p_c = 1 / 2
    assert choice_kappa(["0"] * 14, ["0"] * 11 + ["1"] * 3, num_completions=2) == pytest.approx(4 / 7)
    # p_o = 3 / 5, p_c = 1 / 4
    assert choice_kappa(list("01233"), list("01200"), num_completions=4) == pytest.approx((0.6 - 0.25) / 0.75)
    # Ties of 2 / 5 and 1 / 5: p_o = 3 / 5, p_c = 0.4 * 0.2 + 0.6 * 0.8 / 2
    first, second = ["tie", "tie", "0", "1", "0"], ["tie", "1", "0", "1", "1"]
    assert choice_kappa(first, second, num_completions=2) == pytest.approx((0.6 - 0.32) / (1 - 0.32))


def test_alpha_of_choices_by_hand() -> None:
    # Of the 8 verdicts that others' can be compared with, 2 are ties; 1 item of 4 has the 2 of it differ.
    units = [{1: "tie", 2: "tie"}, {1: "0", 2: "1"}, {1: "1", 2: "1"}, {1: "0", 2: "0"}, {1: "tie"}]
    assert choice_alpha(units, num_completions=2) == pytest.approx(1 - (2 / 8) / (1 - (2 * 1 + 6 * 5 / 2) / (8 * 7)))
    # Three people of one item: of 6 ordered pairs 4 differ; any two choices of four agree once in 4.
    assert choice_alpha([{1: "2", 2: "2", 3: "0"}], num_completions=4) == pytest.approx(1 - (4 / 6) / (3 / 4))


def test_agreement_of_choices_is_that_of_names_given_by_lot() -> None:
    lot = random.Random(0)
    pairs = [("tie", "tie"), ("tie", "0"), ("0", "0"), ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")] * 40
    kappas, alphas = [], []
    for _ in range(100):
        flips = [lot.choice([{"0": "1", "1": "0", "tie": "tie"}, {"0": "0", "1": "1", "tie": "tie"}]) for _ in pairs]
        named = [(flip[one], flip[other]) for (one, other), flip in zip(pairs, flips, strict=True)]
        kappas.append(cohen_kappa(*map(list, zip(*named, strict=True))))
        alphas.append(krippendorff_alpha([{1: one, 2: other} for one, other in named]))
    kappa = choice_kappa(*map(list, zip(*pairs, strict=True)), num_completions=2)
    assert kappa == pytest.approx(mean(kappas), abs=0.005)
    assert choice_alpha([{1: one, 2: other} for one, other in pairs], num_completions=2) == pytest.approx(
        mean(alphas), abs=0.005
    )


def test_agreement_of_choices_is_undefined_without_shared_items_or_with_ties_only() -> None:
    assert choice_kappa([], [], num_completions=2) is None
    assert choice_kappa(["tie"], ["tie"], num_completions=2) is None
    assert choice_kappa(["0"], ["0"], num_completions=2) == 1
    assert choice_alpha([{1: "0"}, {2: "1"}], num_completions=2) is None
    assert choice_alpha([{1: "tie", 2: "tie"}], num_completions=2) is None
    assert choice_alpha([{1: "0", 2: "0"}], num_completions=2) == 1


@pytest.mark.parametrize(("mode", "num_completions"), [("pairwise", 2), ("best-of-4", 4)])
def test_agreement_depends_on_no_text(mode: Mode, num_completions: int, tmp_path: Path) -> None:
    kappa = (11 / 14 - 1 / num_completions) / (1 - 1 / num_completions)
    for source in range(8):
        engine = feedback.open_database(f"sqlite:///{tmp_path / str(source)}", is_new_allowed=True)
        items = [
            Item(
                mode=mode,
                prompt=f"{number}",
                completions=tuple(f"{source}.{number}.{k}" for k in range(num_completions)),
            )
            for number in range(14)
        ]
        import_labels(engine, [LabelledItem(item=item, verdict="0") for item in items], name="ann")
        said = [LabelledItem(item=item, verdict="0" if n < 11 else "1") for n, item in enumerate(items)]
        import_labels(engine, said, name="bob")
        statistics = feedback.compute_statistics(engine, mode)
        engine.dispose()
        assert statistics.pairs[0].kappa == pytest.approx(kappa)
        assert statistics.alpha == pytest.approx(1 - (3 / 14) / (1 - 1 / num_completions))


def test_statistics_read_the_texts_of_an_item_once(
    make_store: Callable[..., LabelStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: read.append(text) or loads(text))
    store = make_store(3)
    ann = store.find_annotator("ann").id
    for num_items, num_read in ((3, 3), (3, 0), (5, 2)):
        feedback.add_items(store.engine, numbered_items(num_items, "pairwise"))
        lease = store.next_lease(ann)
        assert lease is not None
        store.label(ann, lease.id, "0")
        read.clear()
        assert feedback.compute_statistics(store.engine, "pairwise").num_items == num_items
        assert len([text for text in read if ".1" in text]) == num_read
