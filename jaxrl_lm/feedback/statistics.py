"""Who did how much, how fast, and how far they agree."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, func, select

from jaxrl_lm.feedback.agreement import choice_alpha, choice_kappa, cohen_kappa, krippendorff_alpha
from jaxrl_lm.feedback.database import reading
from jaxrl_lm.feedback.items import DOWN, NUM_COMPLETIONS, SKIP, TIE, Mode
from jaxrl_lm.feedback.schema import annotators, items, labels


@dataclass(frozen=True, kw_only=True)
class PersonStatistics:
    """One person's work.

    Attributes:
        name: of the person.
        num_labels: verdicts, skips not counted.
        num_skips: items left to others.
        num_ties: verdicts that neither answer is better.
        num_down: thumbs down.
        median_seconds: from handing out to verdict, an undone one's included; None without labels made on the page.
        labels_per_hour: at that pace.
        num_choices: verdicts that choose one of several answers.
        num_first_chosen: those that chose the answer shown first; far from num_choices / num_completions, the place
            decides and not the answer.
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
    """How far two people agree.

    Attributes:
        names: the two.
        num_shared: items that both judged; skips do not count.
        agreement: share of those on which they agree.
        kappa: Cohen's; None where chance alone would agree always.
    """

    names: tuple[str, str]
    num_shared: int
    agreement: float
    kappa: float | None


@dataclass(frozen=True, kw_only=True)
class LabelStatistics:
    """The labels of one mode.

    Attributes:
        mode: how items are judged.
        num_items: all items.
        num_labelled: items with one label or more.
        num_items_by_labels: items with no label, with one, with two and so on.
        num_labels: skips not counted.
        num_shared: items that several people judged.
        alpha: Krippendorff's, over these; None where it is not defined.
        people: by labels, most first.
        pairs: people who share items.
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
        """Items with as many labels as are asked for, as the label page counts them."""
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
    """Statistics of all labels of a mode."""
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
        rows = [
            _Row(
                item=row.item_id,
                name=row.name,
                verdict=row.verdict,
                meaning=_meaning(row.verdict, firsts.get(row.item_id)),
                seconds=row.seconds,
                first_shown=None if row.shown_order is None else str(row.shown_order[0]),
            )
            for row in connection.execute(query)
        ]
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


def list_modes(engine: Engine) -> list[Mode]:
    """The modes that items of the database have, in a fixed order."""
    with reading(engine) as connection:
        return list(connection.scalars(select(items.c.mode).distinct().order_by(items.c.mode)))


def _first_equals(engine: Engine, connection: Connection) -> dict[int, list[int]]:
    """For items with equal answers, the place of the first that equals each; texts are read once an engine.

    Items do not change and are not deleted, and the stats page asks every few seconds.
    """
    known = _KNOWN.get(engine, _KnownItems())
    if connection.scalar(select(func.count()).where(items.c.id <= known.last)) != known.num_items:
        known = _KnownItems()  # another program's transaction has added items between those that were read
    firsts, last, num_items = dict(known.firsts), known.last, known.num_items
    new = select(items.c.id, items.c.completions).where(items.c.id > last).order_by(items.c.id)
    for row in connection.execute(new):
        places = [row.completions.index(completion) for completion in row.completions]
        if places != list(range(len(places))):
            firsts[row.id] = places
        last, num_items = row.id, num_items + 1
    _KNOWN[engine] = _KnownItems(last=last, num_items=num_items, firsts=firsts)
    return firsts


def _meaning(verdict: str, firsts: list[int] | None) -> str:
    """A verdict for comparing people: of answers that are equal, choosing either is the same."""
    return str(firsts[int(verdict)]) if firsts is not None and verdict.isdigit() else verdict


def _alpha(verdicts: list[dict[str, str]], mode: Mode) -> float | None:
    """Krippendorff's; thumbs mean the same in every item, the places of answers do not."""
    if mode == "thumbs":
        return krippendorff_alpha(verdicts)
    return choice_alpha(verdicts, num_answers=NUM_COMPLETIONS[mode])


def _kappa(first: list[str], second: list[str], mode: Mode) -> float | None:
    """Cohen's; thumbs mean the same in every item, the places of answers do not."""
    if mode == "thumbs":
        return cohen_kappa(first, second)
    return choice_kappa(first, second, num_answers=NUM_COMPLETIONS[mode])


def _person(name: str, rows: list[_Row]) -> PersonStatistics:
    judged = [row for row in rows if row.verdict != SKIP]
    seconds = [row.seconds for row in judged if row.seconds is not None]
    pace = median(seconds) if seconds else None
    choices = [row for row in judged if row.verdict.isdigit() and row.first_shown is not None]
    return PersonStatistics(
        name=name,
        num_labels=len(judged),
        num_skips=len(rows) - len(judged),
        num_ties=sum(row.verdict == TIE for row in judged),
        num_down=sum(row.verdict == DOWN for row in judged),
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
