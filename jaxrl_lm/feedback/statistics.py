"""Labels, pace and agreement of annotators."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, func, select

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.agreement import choice_alpha, choice_kappa, cohen_kappa, krippendorff_alpha
from jaxrl_lm.feedback.database import reading
from jaxrl_lm.feedback.items import DOWN, MODES, NUM_COMPLETIONS, SKIP, TIE, Mode
from jaxrl_lm.feedback.schema import annotators, items, labels
from jaxrl_lm.feedback.stored import check_completions, check_label


@dataclass(frozen=True, kw_only=True)
class PersonStatistics:
    """Statistics of one annotator.

    Attributes:
        name: the annotator's name.
        num_labels: labels, without skips.
        num_skips: skipped items.
        num_ties: ties.
        num_down: thumbs down.
        median_seconds: time per label, including the time of undone ones; None without labels made on the page.
        labels_per_hour: at that pace.
        num_choices: labels that choose one of several completions.
        num_first_chosen: choices of the completion shown first; a number far from num_choices / num_completions means
            position bias.
    """

    name: str
    num_labels: int
    num_skips: int
    num_ties: int
    num_down: int
    median_seconds: float | None
    labels_per_hour: float | None
    num_choices: int
    num_first_chosen: int


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """Agreement of two annotators.

    Attributes:
        names: the two annotators.
        num_shared: items labelled by both, without skips.
        agreement: share of shared items on which they agree.
        kappa: Cohen's kappa; None where chance agreement is 1.
    """

    names: tuple[str, str]
    num_shared: int
    agreement: float
    kappa: float | None


@dataclass(frozen=True, kw_only=True)
class LabelStatistics:
    """Statistics of the labels of one mode.

    Attributes:
        mode: how items are labelled.
        num_items: all items.
        num_labelled: items with at least one label.
        num_items_by_labels: number of items with 0, 1, 2, ... labels.
        num_labels: labels, without skips.
        num_shared: items labelled by several annotators.
        alpha: Krippendorff's alpha over shared items; None where undefined.
        people: annotators, most labels first.
        pairs: pairs of annotators who share items.
    """

    mode: Mode
    num_items: int
    num_labelled: int
    num_items_by_labels: list[int]
    num_labels: int
    num_shared: int
    alpha: float | None
    people: list[PersonStatistics]
    pairs: list[PairStatistics]

    def num_finished(self, overlap: int) -> int:
        """Items with at least `overlap` labels, as the label page counts them."""
        return sum(self.num_items_by_labels[overlap:])


@dataclass(frozen=True, kw_only=True)
class _Row:
    item: int
    name: str
    verdict: str
    meaning: str
    seconds: float | None
    first_shown: str | None


@dataclass(frozen=True, kw_only=True)
class _KnownItems:
    last: int = 0
    num_items: int = 0
    firsts: dict[int, list[int]] = field(default_factory=dict)


_KNOWN: WeakKeyDictionary[Engine, _KnownItems] = WeakKeyDictionary()


def compute_statistics(engine: Engine, mode: Mode) -> LabelStatistics:
    """Statistics of all labels of a mode.

    Raises:
        InputError: a row of the database is damaged.
    """
    num_items, rows = _read_labels(engine, mode)
    verdicts: dict[int, dict[str, str]] = defaultdict(dict)
    by_person: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_person[row.name].append(row)
        if row.verdict != SKIP:
            verdicts[row.item][row.name] = row.meaning
    by_labels = Counter(map(len, verdicts.values()))
    by_labels[0] = num_items - len(verdicts)
    people = [_person(name, person_rows) for name, person_rows in by_person.items()]
    return LabelStatistics(
        mode=mode,
        num_items=num_items,
        num_labelled=len(verdicts),
        num_items_by_labels=[by_labels[num] for num in range(max(by_labels) + 1)],
        num_labels=sum(map(len, verdicts.values())),
        num_shared=sum(len(item) > 1 for item in verdicts.values()),
        alpha=_alpha(list(verdicts.values()), mode),
        people=sorted(people, key=lambda person: (-person.num_labels, person.name.casefold())),
        pairs=_pairs(verdicts, mode),
    )


def _read_labels(engine: Engine, mode: Mode) -> tuple[int, list[_Row]]:
    """The number of items of a mode, and all their labels, oldest first."""
    is_mode = items.c.mode == mode
    query = (
        select(labels, annotators.c.name)
        .join(annotators, annotators.c.id == labels.c.annotator_id)
        .join(items, items.c.id == labels.c.item_id)
        .where(is_mode)
        .order_by(labels.c.id)
    )
    with reading(engine) as connection:
        firsts = _first_equals(engine, connection)
        num_items = connection.scalar(select(func.count()).select_from(items).where(is_mode)) or 0
        rows = [_row_of(row, mode, firsts) for row in connection.execute(query)]
    return num_items, rows


def _row_of(row: Any, mode: Mode, firsts: dict[int, list[int]]) -> _Row:
    check_label(row, mode)
    return _Row(
        item=row.item_id,
        name=row.name,
        verdict=row.verdict,
        meaning=_meaning(row.verdict, firsts.get(row.item_id)),
        seconds=row.seconds,
        first_shown=None if row.shown_order is None else str(row.shown_order[0]),
    )


def list_modes(engine: Engine) -> list[Mode]:
    """The modes of the items in the database, in a fixed order.

    Raises:
        InputError: the database has another mode.
    """
    with reading(engine) as connection:
        found = list(connection.scalars(select(items.c.mode).distinct().order_by(items.c.mode)))
    unknown = [mode for mode in found if mode not in MODES]
    if unknown:
        raise InputError(f"labels: mode {unknown[0]!r:.60} of an item is none of {', '.join(MODES)}; restore a backup")
    return found


def _first_equals(engine: Engine, connection: Connection) -> dict[int, list[int]]:
    """For items with equal completions, the index of the first equal one; texts are read once per engine.

    Items never change and are never deleted.
    """
    known = _KNOWN.get(engine, _KnownItems())
    if connection.scalar(select(func.count()).where(items.c.id <= known.last)) != known.num_items:
        known = _KnownItems()  # another program has added items between those already read
    firsts, last, num_items = dict(known.firsts), known.last, known.num_items
    new = select(items.c.id, items.c.mode, items.c.completions).where(items.c.id > last).order_by(items.c.id)
    for row in connection.execute(new):
        check_completions(row, row.id)
        places = [row.completions.index(completion) for completion in row.completions]
        if places != list(range(len(places))):
            firsts[row.id] = places
        last, num_items = row.id, num_items + 1
    _KNOWN[engine] = _KnownItems(last=last, num_items=num_items, firsts=firsts)
    return firsts


def _meaning(verdict: str, firsts: list[int] | None) -> str:
    """A verdict for comparison between annotators: equal completions count as the same choice."""
    return str(firsts[int(verdict)]) if firsts is not None and verdict.isdigit() else verdict


def _alpha(verdicts: list[dict[str, str]], mode: Mode) -> float | None:
    """Krippendorff's alpha; thumbs mean the same in every item, completion indices do not."""
    if mode == "thumbs":
        return krippendorff_alpha(verdicts)
    return choice_alpha(verdicts, num_completions=NUM_COMPLETIONS[mode])


def _kappa(first: list[str], second: list[str], mode: Mode) -> float | None:
    """Cohen's kappa; thumbs mean the same in every item, completion indices do not."""
    if mode == "thumbs":
        return cohen_kappa(first, second)
    return choice_kappa(first, second, num_completions=NUM_COMPLETIONS[mode])


def _person(name: str, rows: list[_Row]) -> PersonStatistics:
    labelled = [row for row in rows if row.verdict != SKIP]
    seconds = [row.seconds for row in labelled if row.seconds is not None]
    pace = median(seconds) if seconds else None
    choices = [row for row in labelled if row.verdict.isdigit() and row.first_shown is not None]
    return PersonStatistics(
        name=name,
        num_labels=len(labelled),
        num_skips=len(rows) - len(labelled),
        num_ties=sum(row.verdict == TIE for row in labelled),
        num_down=sum(row.verdict == DOWN for row in labelled),
        median_seconds=pace,
        labels_per_hour=3600 / pace if pace else None,
        num_choices=len(choices),
        num_first_chosen=sum(row.verdict == row.first_shown for row in choices),
    )


def _pairs(verdicts: dict[int, dict[str, str]], mode: Mode) -> list[PairStatistics]:
    shared: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for item in verdicts.values():
        for one, other in combinations(sorted(item, key=str.casefold), 2):
            shared[one, other].append((item[one], item[other]))
    return [
        PairStatistics(
            names=names,
            num_shared=len(both),
            agreement=sum(one == other for one, other in both) / len(both),
            kappa=_kappa([one for one, _ in both], [other for _, other in both], mode),
        )
        for names, both in sorted(shared.items())
    ]
