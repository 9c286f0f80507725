"""Fields of a row: texts, conversations, labels and numbers, checked; each error names the row's place."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxrl_lm.data.columns import guess, listed
from jaxrl_lm.data.records import Conversation, Message, Text, content_text
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError

# Arguments of Hugging Face's apply_chat_template that are no variables of the template.
_NOT_TEMPLATE_VARIABLES = frozenset(
    {
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("return_assistant_tokens_mask", "sanitize_control_tokens"),
    }
)
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

    A conversation gets the row's `tools` and `chat_template_kwargs`, if there are such columns.

    Raises:
        InputError: it is missing, or neither.
    """
    value, at = required(row, name, where), f"{where}, {name!r}"
    if not isinstance(value, list):
        return check_text(value, at)
    return as_conversation(check_messages(value, at), row, where)


def answer_field(row: dict[str, Any], name: str, where: str) -> Text:
    """A text field that says something.

    Raises:
        InputError: it is missing, of the wrong kind, or blank.
    """
    return check_answer(text_field(row, name, where), f"{where}, {name!r}")


def label_field(row: dict[str, Any], name: str, where: str) -> bool:
    """A binary label: true or false, 1 or 0, "good" or "bad", as JSON or as text in any case.

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
        raise InputError(f"{where}, {name!r}: {excerpt(value)} is not a finite number; correct it or remove the row")
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
    """An answer that says something: text that is not blank, or messages whose last has some, or calls a tool.

    Raises:
        InputError: it is blank.
    """
    if is_blank(answer):
        raise InputError(f"{at}: the answer is empty; fill it in or remove the row")
    return answer


def is_blank(answer: Text) -> bool:
    """Whether an answer says nothing: of messages, the last says it; a tool call says something."""
    if isinstance(answer, str):
        return not answer.strip()
    return not answer or not (content_text(answer[-1]).strip() or answer[-1].get("tool_calls"))


def check_messages(messages: list[Any], at: str) -> list[Message]:
    """A conversation: one or more objects with `role` and `content`; keys that are null are dropped.

    Content is text or a list of text parts, and may be missing if there are `tool_calls`. Other keys are not checked.

    Raises:
        InputError: it is not, or a part is an image or another thing that is not text.
    """
    remedy = 'give messages such as [{"role": "user", "content": "Hello"}]'
    if not messages:
        raise InputError(f"{at}: the list of messages is empty; {remedy}")
    checked = []
    for index, message in enumerate(messages):
        where = f"{at}, message {index}"
        if not isinstance(message, dict):
            raise InputError(f"{where}: {excerpt(message)} is not an object; {remedy}")
        # Parquet gives every message the keys of all messages; those it did not have are null.
        present = {key: value for key, value in message.items() if value is not None}
        if not isinstance(present.get("role"), str):
            raise InputError(f"{where}: its 'role' is missing or not text; {remedy}")
        content, calls = present.get("content"), present.get("tool_calls", [])
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise InputError(f"{where}: its 'tool_calls' is not a list of objects; {remedy}")
        if calls:
            present["tool_calls"] = _without_nulls(calls)
        if isinstance(content, list):
            present["content"] = [_check_part(part, f"{where}, part {place}") for place, part in enumerate(content)]
        elif not isinstance(content, str) and not (content is None and calls):
            raise InputError(f"{where}: its 'content' is missing or not text; {remedy}")
        check_encodable("".join(_strings(present)), at)
        checked.append(present)
    return checked


def as_conversation(messages: list[Message], row: Mapping[str, Any], where: str) -> list[Message]:
    """Messages with the row's columns for the chat template: `tools` and `chat_template_kwargs`, also as JSON text.

    Raises:
        InputError: `tools` is no list of objects, or `chat_template_kwargs` no object of template variables.
    """
    tools, arguments = (_without_nulls(_parsed(row.get(name))) for name in ("tools", "chat_template_kwargs"))
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"{where}, 'tools': {excerpt(tools)} is not a list of objects; give each tool's JSON schema")
    if arguments and not isinstance(arguments, dict):
        raise InputError(
            f"{where}, 'chat_template_kwargs': {excerpt(arguments)} is not an object; "
            'give variables of the chat template by name, such as {"enable_thinking": false}'
        )
    reserved = sorted(_NOT_TEMPLATE_VARIABLES.intersection(arguments or ()))
    if reserved:
        raise InputError(f"{where}, 'chat_template_kwargs': {reserved[0]!r} is no variable of a template; remove it")
    if not tools and not arguments:
        return messages
    return Conversation(messages, tools=tools or None, template_arguments=arguments)


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


def _check_part(part: Any, at: str) -> dict[str, Any]:
    present = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
    if present.get("type") == "text" and isinstance(present.get("text"), str):
        return present
    found = f"a part of the type {present['type']!r}" if "type" in present else excerpt(part)
    raise InputError(
        f"{at}: {found} is not supported, only text is; "
        'give parts such as {"type": "text", "text": "Hello"}, or remove the row'
    )


def _without_nulls(value: Any) -> Any:
    """A value without the keys that are null: parquet gives every object the keys of all, as TRL's reader knows."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _strings(value: Any) -> Iterator[str]:
    """All texts inside a value, keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _parsed(value: Any) -> Any:
    """A column that holds JSON as text, as csv must, parsed; anything else as it is."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
