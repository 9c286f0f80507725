"""Export and import labels as rows of the data sets that reward models are trained on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import time
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.database import damage_in_words, reading
from jaxrl_lm.feedback.items import SKIP, TIE, UP, VERDICTS, Item, Mode
from jaxrl_lm.feedback.schema import annotators, items, labels
from jaxrl_lm.feedback.store import annotator_id, checked_name, count_labels, insert_item
from jaxrl_lm.feedback.stored import check_item, check_label, check_name


@dataclass(frozen=True, kw_only=True)
class LabelledItem:
    """An item with a verdict given elsewhere.

    Attributes:
        item: the item.
        verdict: a verdict of the item's mode; a number is an index into `item.completions`.
        annotator: the annotator's name, unless `import_labels` is given one.
        seconds: time from showing the item to the verdict, if known.
        shown_order: indices into `item.completions` in the order shown, if known.
        created_at: seconds since 1970; None for now.
    """

    item: Item
    verdict: str
    annotator: str | None = None
    seconds: float | None = None
    shown_order: tuple[int, ...] | None = None
    created_at: float | None = None

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS[self.item.mode]:
            raise InputError(f"verdict={self.verdict!r} must be one of {', '.join(VERDICTS[self.item.mode])}")
        if self.seconds is not None and not self.seconds >= 0:
            raise InputError(f"seconds={self.seconds} must be 0 or more; omit it if unknown")
        places = list(range(len(self.item.completions)))
        if self.shown_order is not None and sorted(self.shown_order) != places:
            raise InputError(
                f"shown_order={list(self.shown_order)} must contain each of {places} once; omit it if unknown"
            )


@dataclass(frozen=True, kw_only=True)
class ExportedLabels:
    """Rows of a data set, and counts of the labels it cannot represent.

    Attributes:
        rows: one per label, in the order given.
        num_ties: ties.
        num_skips: skips.
    """

    rows: list[dict[str, Any]]
    num_ties: int
    num_skips: int


@dataclass(frozen=True, kw_only=True)
class ImportedLabels:
    """Counts of imported labels.

    Attributes:
        num_added: new labels.
        num_repeated: labels that the annotator had already given.
        num_contradicting: labels that contradict the annotator's existing one, which is kept.
    """

    num_added: int
    num_repeated: int
    num_contradicting: int


def export_labels(engine: Engine, mode: Mode, *, names: Sequence[str] = ()) -> ExportedLabels:
    """Labels of a mode as rows of its data set, with annotator, seconds, the order shown, and what the prompt's row
    gives to the chat template.

    `pairwise`: prompt, chosen, rejected. `thumbs`: prompt, completion, label. `best-of-4`: query, sample0 to sample3,
    best.

    Args:
        engine: from `open_database`.
        mode: whose labels.
        names: annotators whose labels to export; empty for all.

    Raises:
        InputError: there is nobody of a name, or a row of the database is damaged.
    """
    given = _given(engine, mode, names)
    rows = [_row(mode, label) for label in given if label.verdict not in (TIE, SKIP)]
    verdicts = Counter(label.verdict for label in given)
    return ExportedLabels(rows=rows, num_ties=verdicts[TIE], num_skips=verdicts[SKIP])


def export_verdicts(engine: Engine, mode: Mode, *, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All verdicts of a mode, including ties and skips, one row each: the fields of `LabelledItem`.

    Args:
        engine: from `open_database`.
        mode: whose labels.
        names: annotators whose verdicts to export; empty for all.

    Returns:
        rows in the order the verdicts were given: mode, prompt, completions, verdict (a number is an index into
        completions), annotator, seconds, shown_order, created_at (seconds since 1970), and the prompt's `tools` and
        `chat_template_kwargs`, if any.

    Raises:
        InputError: there is nobody of a name, or a row of the database is damaged.
    """
    return [
        {
            "mode": mode,
            "prompt": label.prompt,
            "completions": label.completions,
            "verdict": label.verdict,
            "annotator": label.name,
            "seconds": label.seconds,
            "shown_order": label.shown_order,
            "created_at": label.created_at,
            **label.template,
        }
        for label in _given(engine, mode, names)
    ]


def import_labels(engine: Engine, labelled: Iterable[LabelledItem], *, name: str | None = None) -> ImportedLabels:
    """Add labels given elsewhere, and their items where new; if one fails, none are added.

    Args:
        engine: from `open_database`.
        labelled: items with verdicts.
        name: the annotator; None for each item's `annotator`.

    Raises:
        InputError: a name is invalid or missing, or a row of the database is damaged.
    """
    counts, known = Counter[str](), dict[str, int]()
    with damage_in_words(engine), engine.begin() as connection:
        for each in labelled:
            said_by = each.annotator if name is None else name
            if said_by is None:
                raise InputError("annotator: not given; name the annotator of these labels")
            if said_by not in known:
                known[said_by] = annotator_id(connection, checked_name(said_by))
            counts[_import_one(connection, each, known[said_by])] += 1
    return ImportedLabels(
        num_added=counts["added"], num_repeated=counts["repeated"], num_contradicting=counts["contradicting"]
    )


def _given(engine: Engine, mode: Mode, names: Sequence[str]) -> Sequence[Any]:
    query = (
        select(labels, annotators.c.name, items.c.mode, items.c.prompt, items.c.completions, items.c.template)
        .join(annotators, annotators.c.id == labels.c.annotator_id)
        .join(items, items.c.id == labels.c.item_id)
        .where(items.c.mode == mode)
        .order_by(labels.c.id)
    )
    with reading(engine) as connection:
        if names:
            query = query.where(labels.c.annotator_id.in_(_known(connection, names)))
        found = connection.execute(query).all()
    for row in found:
        check_item(row, row.item_id)
        check_label(row, mode)
    return found


def _known(connection: Connection, names: Sequence[str]) -> list[int]:
    by_name = {row.folded_name: row for row in connection.execute(select(annotators))}
    for row in by_name.values():
        check_name(row.name)
    unknown = [name for name in names if name.casefold() not in by_name]
    if unknown:
        known = ", ".join(sorted(row.name for row in by_name.values())) or "none yet"
        raise InputError(f"annotator={unknown[0]!r} is unknown; annotators in the database: {known}")
    return [by_name[name.casefold()].id for name in names]


def _row(mode: Mode, label: Any) -> dict[str, Any]:
    others = {"annotator": label.name, "seconds": label.seconds, **label.template}
    if mode == "thumbs":
        completion = label.completions[0]
        return {"prompt": label.prompt, "completion": completion, "label": label.verdict == UP, **others}
    best, order = int(label.verdict), label.shown_order
    if mode == "pairwise":
        pair = {"chosen": label.completions[best], "rejected": label.completions[1 - best]}
        is_first = None if order is None else order[0] == best
        return {"prompt": label.prompt, **pair, "is_chosen_shown_first": is_first, **others}
    samples = {f"sample{place}": completion for place, completion in enumerate(label.completions)}
    return {"query": label.prompt, **samples, "best": best, "shown_order": order, **others}


def _import_one(connection: Connection, labelled: LabelledItem, annotator: int) -> str:
    content_hash = labelled.item.content_hash()
    row = connection.execute(select(items).where(items.c.content_hash == content_hash)).first()
    if row is None:
        item_id, completions = insert_item(connection, labelled.item, content_hash), labelled.item.completions
    else:
        check_item(row, row.id)
        item_id, completions = row.id, tuple(row.completions)
        stored = Item(mode=row.mode, prompt=row.prompt, completions=completions, template=row.template)
        if stored.content_hash() != content_hash:
            raise InputError(f"labels: content_hash of item {row.id} is invalid; restore a backup of the database")
    places = _places_in(completions, labelled.item.completions)
    verdict = str(places[int(labelled.verdict)]) if labelled.verdict.isdigit() else labelled.verdict
    given = select(labels.c.verdict).where(labels.c.item_id == item_id, labels.c.annotator_id == annotator)
    earlier = connection.scalar(given)
    if earlier is not None:
        return "repeated" if earlier == verdict else "contradicting"
    order = None if labelled.shown_order is None else [places[place] for place in labelled.shown_order]
    label = {"item_id": item_id, "annotator_id": annotator, "verdict": verdict, "seconds": labelled.seconds}
    created_at = time() if labelled.created_at is None else labelled.created_at
    connection.execute(insert(labels).values(**label, shown_order=order, created_at=created_at))
    if verdict != SKIP:
        count_labels(connection, item_id, 1)
    return "added"


def _places_in(completions: Sequence[Any], others: Sequence[Any]) -> list[int]:
    """The index of each of the others among the completions; equal ones keep their order."""
    free = list(range(len(completions)))
    places = []
    for other in others:
        places.append(next(place for place in free if completions[place] == other))
        free.remove(places[-1])
    return places
