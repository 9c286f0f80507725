"""Rows of ShareGPT and Alpaca in the columns of TRL's forms.

- ShareGPT: `conversations`, a list of messages with `from` and `value` (roles human, gpt, system, tool ...), is
  `messages`; with `chosen` and `rejected` (or `label`) it is the prompt of a preference. `system` is the first message.
- Alpaca: `instruction` and `input` are the prompt, a conversation of one user message (a line each; after those of
  `system` and `history`), and `output` is its `completion`.
- A prompt that is wanted, but missing where there are `messages`, is the messages before the last assistant message.

Messages with `from` and `value` are read as messages with `role` and `content` in every column of messages.

Reference: the data formats of FastChat (ShareGPT), Stanford Alpaca and LLaMA-Factory.
"""

from typing import Any

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bard", "bing", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
_OF_MESSAGES = ("messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected")
PROMPT = "prompt"


def to_trl(row: dict[str, Any], required: str | None = None) -> dict[str, Any]:
    """Add the columns of TRL's forms to a row of ShareGPT or Alpaca.

    Args:
        row: columns by name.
        required: the column that is used as the prompt; None to convert the whole row.

    Returns:
        The row with the new columns, or the row itself if there is nothing to add.
    """
    added = {name: _messages(row[name]) for name in _OF_MESSAGES if _is_from_value(row.get(name))}
    row = row | added if added else row
    if required not in (None, PROMPT):
        return row
    added = _from_conversations(row)
    if row.get(PROMPT) is None:
        added |= _from_alpaca(row)
    row = row | added if added else row
    if row.get(PROMPT) is None and (required == PROMPT or _is_labelled(row)):
        return row | _split(row)
    return row


def gives_prompt(names: list[str]) -> bool:
    """Whether `to_trl` may make a prompt of columns of these names."""
    return not {"instruction", "messages", "conversations", "conversation"}.isdisjoint(names)


def _is_from_value(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and "from" in first and "value" in first and first.get("role") is None


def _messages(value: list[Any] | dict[str, Any]) -> list[Any]:
    return [_message(each) for each in (value if isinstance(value, list) else [value])]


def _message(message: Any) -> Any:
    if not (isinstance(message, dict) and "from" in message):
        return message
    role = message["from"]
    return {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": message.get("value")}


def _from_conversations(row: dict[str, Any]) -> dict[str, Any]:
    name = next((name for name in ("conversations", "conversation") if _is_conversation(row.get(name))), None)
    if name is None or row.get("messages") is not None:
        return {}
    return {"messages": [*_system(row), *row[name]]}


def _from_alpaca(row: dict[str, Any]) -> dict[str, Any]:
    instruction, more = row.get("instruction"), row.get("input")
    if not isinstance(instruction, str) or not (more is None or isinstance(more, str)):
        return {}
    turns = []
    history = row.get("history")
    for question, answer in history if isinstance(history, list) and all(map(_is_pair, history)) else []:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    asked = f"{instruction}\n{more}" if more else instruction
    prompt = [*_system(row), *turns, {"role": "user", "content": asked}]
    is_completed = row.get("output") is not None and row.get("completion") is None
    return {PROMPT: prompt} | ({"completion": row["output"]} if is_completed else {})


def _system(row: dict[str, Any]) -> list[dict[str, str]]:
    text = row.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() else []


def _is_labelled(row: dict[str, Any]) -> bool:
    """Whether the row is a preference or a labelled completion with the prompt in its messages."""
    return row.get("label") is not None or (row.get("chosen") is not None and row.get("rejected") is not None)


def _split(row: dict[str, Any]) -> dict[str, Any]:
    """The messages of a row as a prompt and, if they end in one, a completion."""
    messages = row.get("messages")
    if not _is_conversation(messages) or not messages:
        return {}
    if messages[-1].get("role") != "assistant":
        return {PROMPT: messages}
    if len(messages) == 1:
        return {}
    is_completion_missing = row.get("completion") is None and row.get("label") is not None
    return {PROMPT: messages[:-1]} | ({"completion": messages[-1:]} if is_completion_missing else {})


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) for message in value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
