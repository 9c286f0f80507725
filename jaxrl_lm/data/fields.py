"""Fields of a row: texts, conversations, labels and numbers, checked; each error names the row's place."""

import math
from typing import Any

from jaxrl_lm.data.columns import guess, listed
from jaxrl_lm.data.records import Text
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError

_LABELS = {"true": True, "1": True, "good": True, "false": False, "0": False, "bad": False}


def required(row: dict[str, Any], name: str, where: str) -> Any:
    """The row's field; parquet and the hub write null where a row lacks one.

    Raises:
        InputError: the row has no such field, or null there.
    """
    value = row.get(name)
    if value is not None:
        return value
    present = [column for column, content in row.items() if content is not None]
    raise InputError(f"{where}: there is no {name!r}{guess(name, present)} The row has: {listed(present)}")


def text_field(row: dict[str, Any], name: str, where: str) -> Text:
    """A field that is a plain text or a conversation; characters and markup stay as they are.

    Raises:
        InputError: it is missing, or neither.
    """
    value, at = required(row, name, where), f"{where}, {name!r}"
    if isinstance(value, list):
        messages = check_messages(value, at)
        for message in messages:
            check_encodable("".join(message.values()), at)
        return messages
    return check_text(value, at)


def answer_field(row: dict[str, Any], name: str, where: str) -> Text:
    """A text field that says something.

    Raises:
        InputError: it is missing, of the wrong kind, or blank.
    """
    return check_answer(text_field(row, name, where), f"{where}, {name!r}")


def label_field(row: dict[str, Any], name: str, where: str) -> bool:
    """A field that says good or bad: true or false, 1 or 0, "good" or "bad", as JSON or as text in any case.

    Raises:
        InputError: it is missing or none of these.
    """
    value = required(row, name, where)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    label = _LABELS.get(value.strip().lower()) if isinstance(value, str) else None
    if label is None:
        remedy = 'write true or false, 1 or 0, "good" or "bad"'
        raise InputError(f"{where}, {name!r}: {excerpt(value)} is no label; {remedy}")
    return label


def index_field(row: dict[str, Any], name: str, count: int, where: str) -> int:
    """A field that counts from 0 to below `count`, as a number or as its digits.

    Raises:
        InputError: it is missing or none of these.
    """
    value = required(row, name, where)
    number = _number(value)
    if number is None or number not in range(count):
        raise InputError(f"{where}, {name!r}: {excerpt(value)} is none of the {count} answers; write 0 to {count - 1}")
    return int(number)


def number_field(row: dict[str, Any], name: str, where: str) -> float:
    """A field that is a finite number, or text that reads as one.

    Raises:
        InputError: it is missing or no such number.
    """
    value = required(row, name, where)
    number = _number(value)
    if number is None:
        raise InputError(f"{where}, {name!r}: {excerpt(value)} is not a finite number; mend it or remove the row")
    return number


def check_text(value: Any, at: str) -> str:
    """A plain text that can be written as UTF-8.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, str):
        raise InputError(f"{at}: {excerpt(value)} is not text; give text, or a list of messages")
    check_encodable(value, at)
    return value


def check_answer(answer: Text, at: str) -> Text:
    """An answer that says something: text that is not blank, or messages that end in some.

    Raises:
        InputError: it is blank.
    """
    said = answer if isinstance(answer, str) else answer[-1]["content"] if answer else ""
    if not said.strip():
        raise InputError(f"{at}: the answer is empty; fill it in or remove the row")
    return answer


def check_messages(messages: list[Any], at: str) -> list[dict[str, str]]:
    """A conversation: a list of one or more objects with `role` and `content`, all of whose values are text.

    Raises:
        InputError: it is not.
    """
    remedy = 'give messages such as [{"role": "user", "content": "Hello"}]'
    if not messages:
        raise InputError(f"{at}: the list of messages is empty; {remedy}")
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InputError(f"{at}, message {index}: {excerpt(message)} is not an object; {remedy}")
        # Parquet gives every message the keys of all messages; those it did not have are null.
        present = {key: value for key, value in message.items() if value is not None}
        for key in ("role", "content", *present):
            if not isinstance(present.get(key), str):
                raise InputError(f"{at}, message {index}: its {key!r} is missing or not text; {remedy}")
        checked.append(present)
    return checked


def check_encodable(text: str, at: str) -> None:
    """Refuse text that UTF-8, and so a tokenizer, cannot take.

    Raises:
        InputError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{at}: character {error.start} is half of a surrogate pair, which no tokenizer takes; "
            "remove it or write the pair whole"
        ) from error


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
