"""Checks of rows read from a label database: a damaged file can hold any value in any column."""

import math
from typing import Any

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.items import MODES, NUM_COMPLETIONS, VERDICTS, Mode


def check_item(row: Any, item_id: int) -> None:
    """Refuse a row with an item's mode, prompt, completions and template that no label program wrote.

    Raises:
        InputError: a column has a value that is invalid.
    """
    where = f"item {item_id}"
    _check(where, "mode", row.mode, row.mode in MODES)
    _check(where, "prompt", row.prompt, _is_text(row.prompt))
    check_completions(row, item_id)
    _check(where, "template", row.template, isinstance(row.template, dict))


def check_completions(row: Any, item_id: int) -> None:
    """Refuse a row whose completions are not as many texts as its mode has.

    Raises:
        InputError: the column has another value.
    """
    found, num = row.completions, NUM_COMPLETIONS.get(row.mode)
    is_valid = isinstance(found, list) and len(found) == num and all(map(_is_text, found))
    _check(f"item {item_id}", "completions", found, is_valid)


def check_label(row: Any, mode: Mode) -> None:
    """Refuse a row with a label and its annotator's name that no label program wrote.

    Raises:
        InputError: a column has a value that is invalid.
    """
    where = f"label {row.id}"
    _check(where, "verdict", row.verdict, row.verdict in VERDICTS[mode])
    if row.shown_order is not None:
        check_order(row.shown_order, mode, where)
    _check(where, "seconds", row.seconds, row.seconds is None or _is_time(row.seconds))
    _check(where, "created_at", row.created_at, _is_time(row.created_at))
    check_name(row.name)


def check_order(value: Any, mode: Mode, where: str) -> None:
    """Refuse an order of completions that does not have each of them once.

    Raises:
        InputError: it is another value.
    """
    is_list = isinstance(value, list) and all(type(place) is int for place in value)
    _check(where, "shown_order", value, is_list and sorted(value) == list(range(NUM_COMPLETIONS[mode])))


def check_name(value: Any) -> None:
    """Refuse an annotator's name that is not text.

    Raises:
        InputError: it is another value.
    """
    _check("an annotator", "name", value, isinstance(value, str))


def _check(where: str, column: str, value: Any, is_valid: bool) -> None:
    if not is_valid:
        raise InputError(f"labels: {column}={value!r:.60} of {where} is invalid; restore a backup of the database")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, dict) for each in value))


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf
