"""Leases, labels, undo and several people at once."""

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from jaxrl_lm import feedback
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import LabelStore, Lease, RefusedError
from jaxrl_lm.feedback.items import text_hash
from tests.feedback.conftest import Clock, numbered_items

MakeStore = Callable[..., LabelStore]


def handed(store: LabelStore, annotator: int) -> Lease:
    lease = store.next_lease(annotator)
    assert lease is not None
    return lease


def people(store: LabelStore, *names: str) -> list[int]:
    return [store.find_annotator(name).id for name in names]


def undo_last(store: LabelStore, annotator: int) -> Lease | None:
    lease_id = store.last_labelled(annotator)
    return None if lease_id is None else store.undo(annotator, lease_id)


def test_two_people_never_have_the_same_item(make_store: MakeStore) -> None:
    store = make_store(2)
    ann, bob, eve = people(store, "ann", "bob", "eve")
    assert handed(store, ann).prompt == "prompt 0"
    assert handed(store, bob).prompt == "prompt 1"
    assert store.next_lease(eve) is None


def test_a_page_loaded_again_shows_the_same_item_in_the_same_order(make_store: MakeStore) -> None:
    store = make_store(mode="best-of-4")
    (ann,) = people(store, "ann")
    assert handed(store, ann) == handed(store, ann)


def test_an_expired_lease_frees_the_item_and_a_late_label_of_it_is_refused(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(1)
    ann, bob = people(store, "ann", "bob")
    late = handed(store, ann)
    clock.now += 61
    taken = handed(store, bob)
    with pytest.raises(RefusedError, match="another annotator has it now"):
        store.label(ann, late.id, "0")
    assert store.label(bob, taken.id, "0")


def test_a_late_label_counts_if_nobody_else_has_the_item(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(1)
    (ann,) = people(store, "ann")
    lease = handed(store, ann)
    clock.now += 3600
    assert store.label(ann, lease.id, "tie")
    assert store.is_over()


def test_a_lease_yields_one_label_and_the_first_stands(make_store: MakeStore) -> None:
    store = make_store(1)
    (ann,) = people(store, "ann")
    lease = handed(store, ann)
    assert store.label(ann, lease.id, "0")
    assert not store.label(ann, lease.id, "1")
    (row,) = feedback.export_labels(store.engine, "pairwise").rows
    assert row["chosen"] == lease.completions[0]


def test_the_verdict_is_of_the_order_shown_and_the_order_is_recorded(make_store: MakeStore) -> None:
    store = make_store(40, mode="best-of-4")
    (ann,) = people(store, "ann")
    shown = []
    while (lease := store.next_lease(ann)) is not None:
        shown.append(lease)
        store.label(ann, lease.id, "2")
    rows = feedback.export_labels(store.engine, "best-of-4").rows
    for lease, row in zip(shown, rows, strict=True):
        assert row[f"sample{row['best']}"] == lease.completions[2]
        assert [row[f"sample{place}"] for place in row["shown_order"]] == lease.completions
    # Each of 24 orders is as likely: 40 items in one and the same order have probability 24 ** -39.
    assert len({tuple(row["shown_order"]) for row in rows}) > 1


def test_another_persons_lease_cannot_be_labelled(make_store: MakeStore) -> None:
    store = make_store()
    ann, bob = people(store, "ann", "bob")
    lease = handed(store, ann)
    for annotator, lease_id in [(bob, lease.id), (ann, "no such lease"), (999, lease.id)]:
        with pytest.raises(RefusedError, match="not assigned to you"):
            store.label(annotator, lease_id, "0")


@pytest.mark.parametrize(("mode", "verdict"), [("pairwise", "2"), ("pairwise", "up"), ("thumbs", "0"), ("thumbs", "")])
def test_a_verdict_of_another_mode_is_refused(make_store: MakeStore, mode: str, verdict: str) -> None:
    store = make_store(mode=mode)
    (ann,) = people(store, "ann")
    with pytest.raises(InputError, match="verdict="):
        store.label(ann, handed(store, ann).id, verdict)


def test_undo_hands_the_item_back_in_its_order_and_the_old_page_is_refused(make_store: MakeStore) -> None:
    store = make_store(mode="best-of-4")
    (ann,) = people(store, "ann")
    first = handed(store, ann)
    store.label(ann, first.id, "0")
    stale = handed(store, ann)
    again = undo_last(store, ann)
    assert again is not None
    assert again.completions == first.completions
    assert feedback.export_labels(store.engine, "best-of-4").rows == []
    for lease in (first, stale):
        with pytest.raises(RefusedError, match="out of date"):
            store.label(ann, lease.id, "1")
    assert store.label(ann, again.id, "1")
    assert store.progress(ann).num_done == 1


def test_undo_goes_back_label_by_label_and_then_has_nothing_left(make_store: MakeStore) -> None:
    store = make_store(3)
    (ann,) = people(store, "ann")
    for verdict in ("0", "skip", "tie"):
        store.label(ann, handed(store, ann).id, verdict)
    prompts = [lease.prompt for _ in range(3) if (lease := undo_last(store, ann)) is not None]
    assert prompts == ["prompt 2", "prompt 1", "prompt 0"]
    assert undo_last(store, ann) is None
    assert store.progress(ann) == feedback.Progress(num_items=3, num_done=0, num_mine=0, num_waiting=3)


def test_an_undo_whose_answer_was_lost_takes_back_no_second_label(make_store: MakeStore) -> None:
    store = make_store(3)
    (ann,) = people(store, "ann")
    given = []
    for _ in range(2):
        given.append(handed(store, ann).id)
        store.label(ann, given[-1], "0")
    again = store.undo(ann, given[-1])
    assert store.undo(ann, given[-1]) == again
    assert store.progress(ann).num_mine == 1
    store.label(ann, again.id, "1")
    with pytest.raises(RefusedError, match="already undone"):
        store.undo(ann, given[-1])
    assert store.progress(ann).num_mine == 2


def test_undo_needs_a_label_of_ones_own(make_store: MakeStore) -> None:
    store = make_store()
    ann, bob = people(store, "ann", "bob")
    given, held = handed(store, ann).id, handed(store, bob).id
    store.label(ann, given, "0")
    for lease_id in (given, held, "no such lease"):
        with pytest.raises(RefusedError, match="no such label"):
            store.undo(bob, lease_id)
    assert store.progress(ann).num_mine == 1


def test_undo_takes_back_only_ones_own(make_store: MakeStore) -> None:
    store = make_store()
    ann, bob = people(store, "ann", "bob")
    store.label(ann, handed(store, ann).id, "0")
    assert undo_last(store, bob) is None
    assert store.progress(ann).num_done == 1


@pytest.mark.parametrize("is_labelled", [False, True])
def test_a_skip_of_an_item_that_another_has_cannot_be_undone(make_store: MakeStore, is_labelled: bool) -> None:
    store = make_store(2)
    ann, bob = people(store, "ann", "bob")
    store.label(ann, handed(store, ann).id, "skip")
    held = handed(store, ann)
    taken = handed(store, bob)
    assert taken.prompt == "prompt 0"
    if is_labelled:
        store.label(bob, taken.id, "0")
    with pytest.raises(RefusedError, match="You skipped this item, and another annotator has it now"):
        undo_last(store, ann)
    assert handed(store, ann) == held
    assert store.progress(ann).num_mine == 1
    assert store.label(bob, taken.id, "0") is not is_labelled


def test_a_label_of_an_item_that_has_enough_without_it_cannot_be_undone(make_store: MakeStore) -> None:
    store = make_store(1)
    ann, _ = people(store, "ann", "bob")
    store.label(ann, handed(store, ann).id, "0")
    labelled = feedback.LabelledItem(item=numbered_items(1, "pairwise")[0], verdict="1")
    feedback.import_labels(store.engine, [labelled], name="bob")
    with pytest.raises(RefusedError, match="your label is kept"):
        undo_last(store, ann)
    assert store.progress(ann).num_mine == 1


def test_a_skipped_item_goes_to_another_and_not_back(make_store: MakeStore) -> None:
    store = make_store(1)
    ann, bob = people(store, "ann", "bob")
    store.label(ann, handed(store, ann).id, "skip")
    assert store.next_lease(ann) is None
    assert store.progress(ann).num_done == 0
    assert handed(store, bob).prompt == "prompt 0"


def test_skipped_items_are_waited_for_only_while_somebody_is_at_them(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(2)
    ann, bob = people(store, "ann", "bob")
    store.label(ann, handed(store, ann).id, "skip")
    assert not store.is_over()  # the second item: nobody has seen it
    store.label(ann, handed(store, ann).id, "0")
    assert store.is_over()
    lease = handed(store, bob)
    assert not store.is_over()
    store.release(bob)
    assert store.is_over()
    handed(store, bob)
    clock.now += 61
    assert store.is_over()
    with pytest.raises(RefusedError, match="out of date"):
        store.label(bob, lease.id, "0")
    store.label(bob, handed(store, bob).id, "skip")
    assert store.is_over()
    undo_last(store, ann)
    assert not store.is_over()


def test_overlap_hands_an_item_to_so_many_and_to_nobody_twice(make_store: MakeStore) -> None:
    store = make_store(1, overlap=2)
    ann, bob, eve = people(store, "ann", "bob", "eve")
    leases = [handed(store, ann), handed(store, bob)]
    assert store.next_lease(eve) is None
    store.label(ann, leases[0].id, "0")
    assert store.next_lease(ann) is None
    assert store.next_lease(eve) is None
    store.label(bob, leases[1].id, "0")
    assert store.is_over()


def test_a_label_ends_the_persons_other_leases_of_the_item(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(1, overlap=2)
    ann, bob = people(store, "ann", "bob")
    first_tab = handed(store, ann)
    clock.now += 61
    second_tab = handed(store, ann)
    assert second_tab.id != first_tab.id
    of_bob = handed(store, bob)
    assert store.label(ann, first_tab.id, "0")
    assert not store.label(ann, second_tab.id, "1")  # a repeat: the first is kept
    assert store.label(bob, of_bob.id, "0")
    undo_last(store, ann)
    with pytest.raises(RefusedError, match="out of date"):
        store.label(ann, second_tab.id, "1")


def test_who_leaves_gives_the_item_back_at_once(make_store: MakeStore) -> None:
    store = make_store(1)
    ann, bob = people(store, "ann", "bob")
    handed(store, ann)
    store.release(ann)
    assert handed(store, bob).prompt == "prompt 0"


def test_many_people_at_once_label_each_item_once(make_store: MakeStore) -> None:
    store = make_store(30)
    seen: list[str] = []

    def work(name: str) -> None:
        annotator = store.find_annotator(name).id
        while (lease := store.next_lease(annotator)) is not None:
            assert isinstance(lease.prompt, str)
            seen.append(lease.prompt)
            store.label(annotator, lease.id, "1")

    threads = [threading.Thread(target=work, args=(f"person {place}",)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(seen) == {f"prompt {place}": 1 for place in range(30)}


def test_names_differ_by_more_than_case_and_spaces(make_store: MakeStore) -> None:
    store = make_store()
    ada = store.find_annotator("Ada  Lovelace")
    assert ada.name == "Ada Lovelace"
    assert store.find_annotator(" ada lovelace ") == ada
    assert store.find_annotator("Ada").id != ada.id
    assert store.list_names() == ["Ada", "Ada Lovelace"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  \t",
        "x" * 41,
        "a\x00b",
        "a\u202eb",
        "\u200b",
        "\u3164",
        "\u2800",
        "\u115f",
        "\uffa0",
        "a\u034f",
        "a\U000e0100",
    ],
)
def test_names_that_nobody_can_read_are_refused(make_store: MakeStore, name: str) -> None:
    with pytest.raises(InputError, match="name"):
        make_store().find_annotator(name)


def test_known_items_are_not_added_again(make_store: MakeStore) -> None:
    store = make_store(3)
    assert feedback.add_items(store.engine, numbered_items(5, "pairwise")) == 2


def test_statistics_by_hand(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(4, overlap=2)
    ann, bob = people(store, "ann", "bob")
    for annotator, is_other in ((ann, False), (bob, True)):
        for seconds, what in ((2.0, "agree"), (4.0, "differ"), (60.0, "tie"), (1.0, "skip")):
            lease = handed(store, annotator)
            clock.now += seconds
            ranked = sorted(lease.completions, key=text_hash)
            place = lease.completions.index(ranked[1 if what == "differ" and is_other else 0])
            store.label(annotator, lease.id, what if what in ("tie", "skip") else str(place))
    statistics = feedback.compute_statistics(store.engine, "pairwise")
    assert (statistics.num_items, statistics.num_labelled, statistics.num_labels) == (4, 3, 6)
    for person in statistics.people:
        assert (person.num_labels, person.num_skips, person.num_ties, person.num_choices) == (3, 1, 1, 2)
        assert person.median_seconds == 4.0
        assert person.labels_per_hour == 900.0
    (pair,) = statistics.pairs
    assert (pair.names, pair.num_shared, pair.agreement) == (("ann", "bob"), 3, pytest.approx(2 / 3))
    # ann: 0 0 tie, bob: 0 1 tie; chance agrees in 1 / 3 * 1 / 3 of ties and half of 2 / 3 * 2 / 3 of choices.
    assert pair.kappa == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    # Six verdicts, two of them ties: of 30 ordered pairs 2 * 1 + 4 * 3 / 2 = 8 agree; 2 of 6 disagree within items.
    assert statistics.alpha == pytest.approx(1 - (2 / 6) / (22 / 30))


def test_an_undone_label_took_time_too(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(2)
    (ann,) = people(store, "ann")
    lease = handed(store, ann)
    for seconds in (60.0, 2.0, 1.0):
        clock.now += seconds
        store.label(ann, lease.id, "0")
        again = undo_last(store, ann)
        assert again is not None
        lease = again
    clock.now += 1
    store.label(ann, lease.id, "1")
    lease = handed(store, ann)
    clock.now += 3
    store.label(ann, lease.id, "1")
    assert [row["seconds"] for row in feedback.export_labels(store.engine, "pairwise").rows] == [64.0, 3.0]


def test_undoing_two_labels_keeps_the_time_of_both_and_the_order(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(2)
    (ann,) = people(store, "ann")
    shown = []
    for seconds in (10.0, 5.0):
        lease = handed(store, ann)
        shown.append(lease.completions)
        clock.now += seconds
        store.label(ann, lease.id, "0")
    undo_last(store, ann)
    undo_last(store, ann)
    for seconds in (1.0, 2.0):
        lease = handed(store, ann)
        assert lease.completions == shown.pop(0)
        clock.now += seconds
        store.label(ann, lease.id, "1")
    assert [row["seconds"] for row in feedback.export_labels(store.engine, "pairwise").rows] == [11.0, 7.0]


def test_the_place_that_was_chosen_is_counted(make_store: MakeStore) -> None:
    store = make_store(20)
    (ann,) = people(store, "ann")
    while (lease := store.next_lease(ann)) is not None:
        store.label(ann, lease.id, "0")
    (person,) = feedback.compute_statistics(store.engine, "pairwise").people
    assert (person.num_first_chosen, person.num_choices) == (20, 20)
