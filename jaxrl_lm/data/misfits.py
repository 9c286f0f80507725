"""Skip rows that cannot be read, and list them with their positions and reasons."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from jaxrl_lm.data.rows import RowOrError
from jaxrl_lm.errors import InputError

MAX_MISFIT_SHARE = 0.01
NUM_EXPLAINED_MISFITS = 10
NUM_HOPELESS_MISFITS = 1000
"""Reading stops at this many bad rows if they are more than half of all: the source has another form."""

_LOGGER = logging.getLogger(__name__)
_Record = TypeVar("_Record")


class SourceError(InputError):
    """An error that concerns the whole source; it is raised at once instead of being listed with the rows."""


def collect_records(
    source: str,
    rows: Iterable[RowOrError],
    parse: Callable[[dict[str, Any], str], Iterable[_Record]],
    *,
    limit: int | None,
) -> list[_Record]:
    """Convert rows to records, and warn about rows that cannot be converted.

    Args:
        source: name of the source in errors.
        rows: from `try_rows`.
        parse: converts a row, given its position, to one or more records. It raises InputError for a bad row and
            SourceError for a bad source.
        limit: stop after this many records; None reads all.

    Returns:
        The records in the order of the rows, at least one.

    Raises:
        InputError: the source cannot be read, `parse` raises SourceError, more than 1 % of the rows are bad (unless
            `limit` ends the read), 1,000 of the first 2,000 rows are bad, or no row is left.
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
    """Warn about bad rows, by position; raise if there are too many in a source that was read to its end."""
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
    """Shorten positions such as `FILE, line 17` in one source to `lines 17, 21, 40 to 52`."""
    kind = places[0].split(" ")[-2]
    spans: list[tuple[int, int]] = []
    for number in (int(place.rpartition(" ")[2]) for place in places):
        first = spans.pop()[0] if spans and spans[-1][1] == number - 1 else number
        spans.append((first, number))
    shown = (str(first) if first == last else f"{first} to {last}" for first, last in spans)
    return f"{kind}{'s' if len(places) > 1 else ''} {', '.join(shown)}"
