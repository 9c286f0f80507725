"""Rows that do not fit: skipped, counted, and listed with their positions and reasons."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from jaxrl_lm.data.rows import RowOrError
from jaxrl_lm.errors import InputError

MAX_MISFIT_SHARE = 0.01
NUM_EXPLAINED_MISFITS = 10
NUM_HOPELESS_MISFITS = 1000
"""With this many misfits, if they are more than half of the rows so far, reading stops: the source has another form."""

_LOGGER = logging.getLogger(__name__)
_Record = TypeVar("_Record")


class SourceError(InputError):
    """An error of the whole source, found in one row: raised at once, not listed."""


def collect_records(
    source: str,
    rows: Iterable[RowOrError],
    parse: Callable[[dict[str, Any], str], Iterable[_Record]],
    *,
    limit: int | None,
) -> list[_Record]:
    """Make records of the rows that fit, and warn of those that do not.

    Args:
        source: where the rows are from, for errors.
        rows: from `try_rows`.
        parse: makes a row, given its place, one or more records, or raises InputError where it does not fit, and
            SourceError where none would.
        limit: read no further than this many records; None reads all.

    Returns:
        The records in the order of the rows, at least one.

    Raises:
        InputError: what reading the rows raises; a SourceError of `parse`; over 1 % of all rows do not fit, where
            `limit` has not ended the read before; the first 1,000 misfits come within 2,000 rows; or no row is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; give 1 or more, or leave it out to read all")
    records: list[_Record] = []
    misfits: dict[str, str] = {}
    num_rows = 0
    for where, row in rows:
        num_rows += 1
        try:
            if isinstance(row, InputError):
                raise row
            records.extend(parse(row, where))
        except SourceError:
            raise
        except InputError as error:
            misfits[where] = str(error) if len(misfits) < NUM_EXPLAINED_MISFITS else ""
            if NUM_HOPELESS_MISFITS <= len(misfits) > num_rows / 2:
                _report(source, misfits, num_rows, is_whole=True)
        if limit is not None and len(records) >= limit:
            break
    _report(source, misfits, num_rows, is_whole=limit is None or len(records) < limit)
    if not records:
        raise InputError(f"{source}: holds no rows; give a source with one or more")
    return records[:limit]


def _report(source: str, misfits: dict[str, str], num_rows: int, *, is_whole: bool) -> None:
    """Say which rows do not fit, by place; refuse a source that was read to its end if they are too many."""
    if not misfits:
        return
    listed = "".join(f"\n  {reason}" for reason in list(misfits.values())[:NUM_EXPLAINED_MISFITS])
    if len(misfits) > NUM_EXPLAINED_MISFITS:
        listed += f"\n  and {_shorten(list(misfits)[NUM_EXPLAINED_MISFITS:])}"
    share = f"{source}: {len(misfits)} of {num_rows} rows do not fit"
    if is_whole and len(misfits) > MAX_MISFIT_SHARE * num_rows:
        raise InputError(f"{share}, more than {MAX_MISFIT_SHARE:.0%}; correct or remove them:{listed}")
    _LOGGER.warning("%s and are left out:%s", share, listed)


def _shorten(places: list[str]) -> str:
    """`lines 17, 21, 40 to 52` for places in one source, each of which ends in `line 17` or the like."""
    kind = places[0].split(" ")[-2]
    spans: list[tuple[int, int]] = []
    for number in (int(place.rpartition(" ")[2]) for place in places):
        first = spans.pop()[0] if spans and spans[-1][1] == number - 1 else number
        spans.append((first, number))
    shown = (str(first) if first == last else f"{first} to {last}" for first, last in spans)
    return f"{kind}{'s' if len(places) > 1 else ''} {', '.join(shown)}"
