"""Assignment of items: each is leased to annotators, and each lease yields at most one label."""

import secrets
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, exists, func, insert, or_, select, update

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.database import damage_in_words, reading
from jaxrl_lm.feedback.items import NUM_COMPLETIONS, SKIP, VERDICTS, Item, Mode, Text
from jaxrl_lm.feedback.schema import CLOSED, LABELLED, OPEN, annotators, items, labels, leases
from jaxrl_lm.feedback.stored import check_item, check_name, check_order

MAX_NAME_LENGTH = 40
_BLANK = "\u034f\u115f\u1160\u2800\u3164\uffa0"  # invisible, but letters, symbols or marks by category
_TAKEN_SKIP = "You skipped this item, and another annotator has it now."
_TAKEN_LABEL = "This item has all its labels from other annotators now; your label is kept."


class RefusedError(Exception):
    """The request is out of date: the lease was undone, or the item went to another annotator."""


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """An annotator.

    Attributes:
        id: id in the database.
        name: name as first given.
    """

    id: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Lease:
    """An item assigned to one annotator.

    Attributes:
        id: id of the lease, sent with its one label.
        prompt: text or conversation.
        completions: completions in the order shown.
    """

    id: str
    prompt: Text
    completions: list[Text]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Labelling progress.

    Attributes:
        num_items: items of the mode.
        num_done: items with at least `overlap` labels.
        num_mine: labels by this annotator, including skips.
        num_waiting: items that lack labels and that this annotator has not labelled.
    """

    num_items: int
    num_done: int
    num_mine: int
    num_waiting: int


class LabelStore:
    """The items of one mode, their leases and labels.

    Only one server uses the database, so a process-wide lock is enough to assign each item once.

    Args:
        engine: from `open_database`.
        mode: which items to label.
        overlap: annotators per item.
        lease_seconds: how long an annotator keeps an item before it may go to another.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        mode: Mode,
        overlap: int = 1,
        lease_seconds: float = 600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if overlap < 1:
            raise InputError(f"overlap={overlap} must be at least 1, the number of annotators per item")
        if not lease_seconds > 0:
            raise InputError(f"lease_minutes={lease_seconds / 60:g} must be above 0")
        self.engine, self.overlap = engine, overlap
        self.mode: Mode = mode
        self._lease_seconds, self._clock = lease_seconds, clock
        self._random = secrets.SystemRandom()
        self._lock = threading.Lock()

    def find_annotator(self, name: str) -> Annotator:
        """The annotator of that name, created if new; case is ignored.

        Raises:
            InputError: the name is empty, too long, or not of visible characters.
        """
        shown = checked_name(name)
        with self._lock, damage_in_words(self.engine), self.engine.begin() as connection:
            return Annotator(id=annotator_id(connection, shown), name=_name_of(connection, shown))

    def list_names(self) -> list[str]:
        """All annotators' names, sorted."""
        with reading(self.engine) as connection:
            names = list(connection.scalars(select(annotators.c.name)))
        for name in names:
            check_name(name)
        return sorted(names, key=str.casefold)

    def next_lease(self, annotator: int) -> Lease | None:
        """Lease an item: the one the annotator already holds, otherwise the next free one."""
        with self._lock, damage_in_words(self.engine), self.engine.begin() as connection:
            held = connection.execute(self._held_by(annotator)).first()
            if held is not None:
                renewed = update(leases).where(leases.c.id == held.lease_id)
                connection.execute(renewed.values(expires_at=self._clock() + self._lease_seconds))
                return _lease(held.lease_id, held, held.shown_order)
            item = connection.execute(
                select(items).where(self._is_free_for(annotator)).order_by(items.c.id).limit(1)
            ).first()
            if item is None:
                return None
            given_back = connection.execute(_last_lease(annotator, item.id)).first()
            if given_back is not None:
                # Undone, then left to undo an older label: keep its time and the order shown.
                before = given_back.seconds_before
                return self._hand_out(connection, annotator, item, given_back.shown_order, seconds_before=before)
            order = list(range(NUM_COMPLETIONS[self.mode]))
            self._random.shuffle(order)
            return self._hand_out(connection, annotator, item, order)

    def label(self, annotator: int, lease_id: str, verdict: str) -> bool:
        """Save an annotator's verdict on an item; it is on disk when this returns.

        Args:
            annotator: the annotator's id.
            lease_id: the item's lease.
            verdict: a verdict of the mode; a number is an index in the order shown.

        Returns:
            False if the lease already has a label, which is kept.

        Raises:
            InputError: the verdict is not one of the mode's.
            RefusedError: the lease is another annotator's, was undone, or expired and another annotator has the item.
        """
        if verdict not in VERDICTS[self.mode]:
            raise InputError(f"verdict={verdict!r} must be one of {', '.join(VERDICTS[self.mode])}")
        with self._lock, damage_in_words(self.engine), self.engine.begin() as connection:
            lease = connection.execute(select(leases).where(leases.c.id == lease_id)).first()
            if lease is None or lease.annotator_id != annotator:
                raise RefusedError("This item is not assigned to you; continue with the next.")
            if lease.state == LABELLED:
                return False
            if lease.state == CLOSED:
                raise RefusedError("This page is out of date: the item was undone or released. Continue with the next.")
            where = and_(items.c.id == lease.item_id, self._is_free_for(annotator))
            if connection.execute(select(items.c.id).where(where)).first() is None:
                raise RefusedError(
                    "Your time for this item ran out, and another annotator has it now; continue with the next."
                )
            self._keep(connection, lease, verdict)
        return True

    def last_labelled(self, annotator: int) -> str | None:
        """The lease of the annotator's last label made on the page, for `undo`; None if there is none."""
        mine = and_(labels.c.annotator_id == annotator, items.c.mode == self.mode, labels.c.lease_id.is_not(None))
        last = select(labels.c.lease_id).join(items, items.c.id == labels.c.item_id).where(mine)
        with reading(self.engine) as connection:
            return connection.scalar(last.order_by(labels.c.id.desc()).limit(1))

    def undo(self, annotator: int, lease_id: str) -> Lease:
        """Undo the label of a lease and lease its item again; repeating the call returns the same lease.

        Args:
            annotator: the annotator's id.
            lease_id: the label's lease, as from `last_labelled`.

        Raises:
            RefusedError: another annotator has the item, and the label is kept; or the lease has no label of theirs.
        """
        with self._lock, damage_in_words(self.engine), self.engine.begin() as connection:
            lease = connection.execute(select(leases).where(leases.c.id == lease_id)).first()
            if lease is None or lease.annotator_id != annotator or lease.state == OPEN:
                raise RefusedError("You have no such label to undo; continue with this item.")
            if lease.state == CLOSED:
                return self._undone(connection, lease)
            return self._take_back(connection, lease)

    def release(self, annotator: int) -> None:
        """Release the annotator's item to others."""
        with self._lock, damage_in_words(self.engine), self.engine.begin() as connection:
            _give_back(connection, annotator)

    def progress(self, annotator: int) -> Progress:
        """Progress as shown to one annotator."""
        is_needed = items.c.num_labels < self.overlap
        is_mode = items.c.mode == self.mode
        with reading(self.engine) as connection:

            def count(*where: ColumnElement[bool]) -> int:
                return connection.scalar(select(func.count()).select_from(items).where(is_mode, *where)) or 0

            return Progress(
                num_items=count(),
                num_done=count(~is_needed),
                num_mine=count(_is_labelled_by(annotator)),
                num_waiting=count(is_needed, ~_is_labelled_by(annotator)),
            )

    def is_over(self) -> bool:
        """Whether every item has its labels, or was skipped and is not being labelled."""
        is_needed = and_(items.c.mode == self.mode, items.c.num_labels < self.overlap)
        is_skipped = exists().where(labels.c.item_id == items.c.id, labels.c.verdict == SKIP).correlate(items)
        is_held = exists().where(
            leases.c.item_id == items.c.id, leases.c.state == OPEN, leases.c.expires_at > self._clock()
        )
        is_awaited = and_(is_needed, or_(~is_skipped, is_held.correlate(items)))
        with reading(self.engine) as connection:
            return connection.execute(select(items.c.id).where(is_awaited).limit(1)).first() is None

    def _held_by(self, annotator: int) -> Any:
        return (
            select(leases.c.id.label("lease_id"), leases.c.shown_order, items)
            .join(items, items.c.id == leases.c.item_id)
            .where(leases.c.annotator_id == annotator, leases.c.state == OPEN, leases.c.expires_at > self._clock())
            .where(self._is_free_for(annotator))
            .order_by(leases.c.created_at.desc())
        )

    def _is_free_for(self, annotator: int) -> ColumnElement[bool]:
        """Items that lack labels, counting open leases of others, and are new to this annotator."""
        others = leases.alias()
        is_others = and_(
            others.c.item_id == items.c.id,
            others.c.state == OPEN,
            others.c.expires_at > self._clock(),
            others.c.annotator_id != annotator,
        )
        # Count annotators, not leases: one annotator may have two leases of an item when one expired.
        query = select(func.count(others.c.annotator_id.distinct())).where(is_others)
        num_leased = query.correlate(items).scalar_subquery()
        return and_(
            items.c.mode == self.mode,
            items.c.num_labels < self.overlap,
            items.c.num_labels + num_leased < self.overlap,
            ~_is_labelled_by(annotator),
        )

    def _hand_out(
        self, connection: Connection, annotator: int, item: Any, order: list[int], *, seconds_before: float = 0.0
    ) -> Lease:
        now = self._clock()
        lease_id = secrets.token_hex(16)
        row = {"id": lease_id, "item_id": item.id, "annotator_id": annotator, "shown_order": order, "state": OPEN}
        row |= {"created_at": now, "expires_at": now + self._lease_seconds, "seconds_before": seconds_before}
        connection.execute(insert(leases).values(**row))
        return _lease(lease_id, item, order)

    def _undone(self, connection: Connection, lease: Any) -> Lease:
        """The lease created when this one's label was undone: the response may have been lost."""
        held = connection.execute(self._held_by(lease.annotator_id).where(items.c.id == lease.item_id)).first()
        if held is None:
            raise RefusedError("This page is out of date: that label was already undone. Continue with this item.")
        return _lease(held.lease_id, held, held.shown_order)

    def _take_back(self, connection: Connection, lease: Any) -> Lease:
        theirs = and_(leases.c.item_id == lease.item_id, leases.c.annotator_id == lease.annotator_id)
        connection.execute(update(leases).where(theirs).values(state=CLOSED))
        of_item = and_(labels.c.item_id == lease.item_id, labels.c.annotator_id == lease.annotator_id)
        label = connection.execute(select(labels).where(of_item)).one()
        connection.execute(delete(labels).where(of_item))
        if label.verdict != SKIP:
            count_labels(connection, lease.item_id, -1)
        is_free = and_(items.c.id == lease.item_id, self._is_free_for(lease.annotator_id))
        item = connection.execute(select(items).where(is_free)).first()
        if item is None:
            raise RefusedError(_TAKEN_SKIP if label.verdict == SKIP else _TAKEN_LABEL)
        _give_back(connection, lease.annotator_id)
        return self._hand_out(connection, lease.annotator_id, item, label.shown_order, seconds_before=label.seconds)

    def _keep(self, connection: Connection, lease: Any, verdict: str) -> None:
        now = self._clock()
        check_order(lease.shown_order, self.mode, f"lease {lease.id}")
        connection.execute(
            insert(labels).values(
                lease_id=lease.id,
                item_id=lease.item_id,
                annotator_id=lease.annotator_id,
                verdict=str(lease.shown_order[int(verdict)]) if verdict.isdigit() else verdict,
                shown_order=lease.shown_order,
                seconds=lease.seconds_before + max(now - lease.created_at, 0.0),
                created_at=now,
            )
        )
        # Close all of the annotator's leases of the item: one from another tab would count as a pending label.
        theirs = and_(leases.c.item_id == lease.item_id, leases.c.annotator_id == lease.annotator_id)
        connection.execute(update(leases).where(theirs, leases.c.state == OPEN).values(state=LABELLED))
        if verdict != SKIP:
            count_labels(connection, lease.item_id, 1)


def checked_name(name: str) -> str:
    """A name normalised for display: one space between words.

    Raises:
        InputError: the name is empty, too long, or not of visible characters.
    """
    shown = " ".join(unicodedata.normalize("NFC", name).split())
    if not shown:
        raise InputError("name is empty; enter your name")
    if len(shown) > MAX_NAME_LENGTH:
        raise InputError(f"name has {len(shown)} characters; use at most {MAX_NAME_LENGTH}")
    if any(_is_unseen(character) for character in shown):
        raise InputError(f"name={shown!r} contains invisible characters; remove them")
    return shown


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character)[0] == "C" or character in _BLANK or "\U000e0100" <= character <= "\U000e01ef"


def annotator_id(connection: Connection, name: str) -> int:
    """The id of the annotator of that (checked) name, created if new."""
    folded = name.casefold()
    found = connection.scalar(select(annotators.c.id).where(annotators.c.folded_name == folded))
    if found is not None:
        return found
    made = connection.execute(insert(annotators).values(name=name, folded_name=folded))
    return made.inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]


def add_items(engine: Engine, new_items: Iterable[Item]) -> int:
    """Add items that are not yet in the database, in any order of their completions; returns how many."""
    with engine.begin() as connection:
        known = set(connection.scalars(select(items.c.content_hash)))
        num_known = len(known)
        for item in new_items:
            content_hash = item.content_hash()
            if content_hash not in known:
                known.add(content_hash)
                insert_item(connection, item, content_hash)
        return len(known) - num_known


def insert_item(connection: Connection, item: Item, content_hash: str) -> int:
    """Add an item and return its id."""
    row = {"content_hash": content_hash, "mode": item.mode, "prompt": item.prompt, "num_labels": 0}
    row |= {"completions": list(item.completions), "template": item.template}
    made = connection.execute(insert(items).values(**row))
    return made.inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]


def count_labels(connection: Connection, item: int, change: int) -> None:
    """Change an item's count of labels (skips excluded)."""
    connection.execute(update(items).where(items.c.id == item).values(num_labels=items.c.num_labels + change))


def _name_of(connection: Connection, name: str) -> str:
    return connection.scalar(select(annotators.c.name).where(annotators.c.folded_name == name.casefold())) or name


def _is_labelled_by(annotator: int) -> ColumnElement[bool]:
    return exists().where(labels.c.item_id == items.c.id, labels.c.annotator_id == annotator).correlate(items)


def _last_lease(annotator: int, item: int) -> Any:
    theirs = and_(leases.c.item_id == item, leases.c.annotator_id == annotator)
    return select(leases).where(theirs).order_by(leases.c.created_at.desc()).limit(1)


def _give_back(connection: Connection, annotator: int) -> None:
    held = and_(leases.c.annotator_id == annotator, leases.c.state == OPEN)
    connection.execute(update(leases).where(held).values(state=CLOSED))


def _lease(lease_id: str, item: Any, order: list[int]) -> Lease:
    check_item(item, item.id)
    check_order(order, item.mode, f"lease {lease_id}")
    return Lease(id=lease_id, prompt=item.prompt, completions=[item.completions[place] for place in order])
