"""Read and check the fields of a row: texts, conversations, labels and numbers. Errors name the position of the row."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxrl_lm.data.columns import guess, listed
from jaxrl_lm.data.records import Conversation, Message, Text, content_text
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError

# Arguments of Hugging Face's apply_chat_template that are not variables of the template.
_NOT_TEMPLATE_VARIABLES = frozenset(
    {
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("return_assistant_tokens_mask", "sanitize_control_tokens"),
    }
)
_LABELS = {"true": True, "1": True, "good": True, "false": False, "0": False, "bad": False}


def required(row: dict[str, Any], name: str, where: str) -> Any:
    """The value of a field. Null counts as missing: parquet and the hub write it where a row lacks a column.

    Raises:
        InputError: the field is missing or null.
    """
    value = row.get(name)
    if value is not None:
        return value
    present = [column for column, content in row.items() if content is not None]
    raise InputError(f"{where}: there is no {name!r}{guess(name, present)} The row has: {listed(present)}")


def text_field(row: dict[str, Any], name: str, where: str) -> Text:
    """A field with plain text or a conversation, unchanged.

    If the row has the columns `tools` or `chat_template_kwargs`, the conversation carries them.

    Raises:
        InputError: the field is missing, or is neither text nor messages.
    """
    value, at = required(row, name, where), f"{where}, {name!r}"
    if not isinstance(value, list):
        return check_text(value, at)
    return as_conversation(check_messages(value, at), row, where)


def nonblank_field(row: dict[str, Any], name: str, where: str) -> Text:
    """A text field that is not blank.

    Raises:
        InputError: the field is missing, is neither text nor messages, or is blank.
    """
    return check_nonblank(text_field(row, name, where), f"{where}, {name!r}")


def label_field(row: dict[str, Any], name: str, where: str) -> bool:
    """A binary label: true or false, 1 or 0, "good" or "bad", as JSON or as text in any case.

    Raises:
        InputError: the field is missing or has another value.
    """
    value = required(row, name, where)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    label = _LABELS.get(value.strip().lower()) if isinstance(value, str) else None
    if label is None:
        remedy = 'write true or false, 1 or 0, "good" or "bad"'
        raise InputError(f"{where}, {name!r}: {excerpt(value)} is not a label; {remedy}")
    return label


def index_field(row: dict[str, Any], name: str, count: int, where: str) -> int:
    """An index in `[0, count)`, as a number or as text.

    Raises:
        InputError: the field is missing or is not such an index.
    """
    value = required(row, name, where)
    number = _number(value)
    if number is None or number not in range(count):
        raise InputError(f"{where}, {name!r}: {excerpt(value)} is not an index; write 0 to {count - 1}")
    return int(number)


def number_field(row: dict[str, Any], name: str, where: str) -> float:
    """A finite number, as a number or as text.

    Raises:
        InputError: the field is missing or is not a finite number.
    """
    value = required(row, name, where)
    number = _number(value)
    if number is None:
        raise InputError(f"{where}, {name!r}: {excerpt(value)} is not a finite number; correct it or remove the row")
    return number


def check_text(value: Any, at: str) -> str:
    """Check that a value is plain text that UTF-8 can encode, and return it.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, str):
        raise InputError(f"{at}: {excerpt(value)} is not text; give text, or a list of messages")
    check_encodable(value, at)
    return value


def check_nonblank(text: Text, at: str) -> Text:
    """Check that a text is not blank, and return it.

    Raises:
        InputError: it is blank.
    """
    if is_blank(text):
        raise InputError(f"{at}: it is empty; fill it in or remove the row")
    return text


def is_blank(text: Text) -> bool:
    """Whether a text is blank. Of a conversation the last message counts; a tool call is not blank."""
    if isinstance(text, str):
        return not text.strip()
    return not text or not (content_text(text[-1]).strip() or text[-1].get("tool_calls"))


def check_messages(messages: list[Any], at: str) -> list[Message]:
    """Check a conversation, one or more objects with `role` and `content`, and return it without null keys.

    Content is text or a list of text parts, and may be missing if there are `tool_calls`. Other keys are not checked.

    Raises:
        InputError: it is not a conversation, or a part is not text, such as an image.
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
    """Attach the row's columns for the chat template, `tools` and `chat_template_kwargs`, to messages.

    Both may be JSON text. Without them the messages are returned as they are.

    Raises:
        InputError: `tools` is not a list of objects, or `chat_template_kwargs` is not an object of template variables.
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
        raise InputError(f"{where}, 'chat_template_kwargs': {reserved[0]!r} is not a template variable; remove it")
    if not tools and not arguments:
        return messages
    return Conversation(messages, tools=tools or None, template_arguments=arguments)


def check_encodable(text: str, at: str) -> None:
    """Refuse text that UTF-8 cannot encode, because no tokenizer accepts it.

    Raises:
        InputError: the text contains half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{at}: character {error.start} is half of a surrogate pair, which no tokenizer accepts; "
            "remove it or write the whole pair"
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
    """The value without null keys: parquet gives every object the keys of all objects."""
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
    """Parse a column that is JSON text, as in CSV files; return anything else as it is."""
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
