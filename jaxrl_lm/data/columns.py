"""Normalise the names of columns."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jaxrl_lm.errors import InputError

_NUM_LISTED = 20
_KNOWN = (
    "prompt", "completion", "chosen", "rejected", "label", "text", "messages", "conversations", "instruction", "input",
    "output", "system", "history", "query", "best", "rating", "info", "summaries", "choice", "annotator", "verdict",
    "completions",
)  # fmt: skip
_SAMPLE = re.compile(r"sample\d+")
# pandas writes its index as a column without a name, or with one of these.
_INDEX = re.compile(r"|Unnamed: \d+(\.\d+)?|__index_level_\d+__")


def tidy_names(names: Sequence[str], required: str | None) -> list[str | None]:
    """Normalise column names: strip spaces, and write known names in lower case.

    Args:
        names: column names in the file.
        required: another known name.

    Returns:
        The name of each column; None for pandas' index and for columns without a name, which are left out.
    """
    known = _KNOWN if required is None else (*_KNOWN, required)
    by_folded = {name.casefold(): name for name in known}
    present = set(names)
    tidied: list[str | None] = []
    for name in names:
        stripped = name.strip()
        if _INDEX.fullmatch(stripped) and name != required:
            tidied.append(None)
            continue
        folded = stripped.casefold()
        wanted = folded if _SAMPLE.fullmatch(folded) else by_folded.get(folded, stripped)
        tidied.append(name if name in known or wanted in present else wanted)
    return tidied


def tidy_row(row: dict[str, Any], required: str | None) -> dict[str, Any]:
    """Rename the columns of a row with `tidy_names`. If two columns get the same name, the first one is kept."""
    names = tuple(row)
    if not all(isinstance(name, str) for name in names):
        return row
    tidied = _tidy(names, required)
    if tidied is None:
        return row
    renamed: dict[str, Any] = {}
    for name, value in zip(tidied, row.values(), strict=True):
        if name is not None:
            renamed.setdefault(name, value)
    return renamed


@lru_cache(maxsize=16)
def _tidy(names: tuple[str, ...], required: str | None) -> tuple[str | None, ...] | None:
    """The result of `tidy_names`, or None if it changes nothing."""
    tidied = tuple(tidy_names(names, required))
    return None if tidied == names else tidied


def check_column(column: str | None, present: Sequence[str], where: str) -> None:
    """Check that the prompt column is present.

    Raises:
        InputError: it is missing.
    """
    if column is None or column in present:
        return
    raise InputError(
        f"{where}: there is no column {column!r}{guess(column, present)} The columns are: {listed(present)}. "
        "Set `column` to the one that holds the prompt"
    )


def check_unique(names: Sequence[str], where: str) -> None:
    """Check that no name occurs twice in a header.

    Raises:
        InputError: a name occurs twice.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{where}: the column {twice[0]!r} occurs twice; rename one")


def guess(name: str, present: Sequence[str]) -> str:
    """`; did you mean 'x'?` if a present name is similar, otherwise a full stop."""
    near = difflib.get_close_matches(name, list(present)[:1000], n=1)
    return f"; did you mean {near[0][:100]!r}?" if near else "."


def listed(names: Sequence[str]) -> str:
    """The first names, for a message, and the number of the others."""
    shown = ", ".join(repr(name[:100]) for name in names[:_NUM_LISTED]) or "nothing"
    return shown if len(names) <= _NUM_LISTED else f"{shown} and {len(names) - _NUM_LISTED} more"
