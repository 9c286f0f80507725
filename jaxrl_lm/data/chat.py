"""Render conversations with the tokenizer's chat template, and find the assistant's text in the result."""

import logging
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Bool

from jaxrl_lm import guarded
from jaxrl_lm.data.fields import is_blank
from jaxrl_lm.data.records import Conversation, Message, Text, content_text
from jaxrl_lm.errors import InputError
from jaxrl_lm.guarded import limits

Ending = Literal["closed", "open", "continued"]
"""How a rendering ends: after the last message's turn; where the assistant's next turn begins; inside the last turn."""

_log = logging.getLogger(__name__)
# A private character, which no template looks for or strips.
_MARK = "\ue000"
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


def render(messages: list[Message], tokenizer: Any, *, at: str, ending: Ending = "closed") -> str:
    """Render a conversation as text with special tokens, with Hugging Face's `apply_chat_template`.

    Lists of text parts are joined if the template does not support them.

    Args:
        messages: the conversation; the template also gets the tools and arguments of a `Conversation`.
        tokenizer: a Hugging Face tokenizer.
        at: name of the conversation in errors.
        ending: how the text ends.

    Raises:
        InputError: the tokenizer has no template, or the template fails or leaves out tool calls.
    """
    if tokenizer.chat_template is None:
        raise InputError(
            f"{at}: a conversation, but the tokenizer has no chat template; "
            "give plain prompts, or a tokenizer with a chat template"
        )
    arguments = _template_arguments(messages)
    apply = partial(_apply, tokenizer, **arguments)
    options = {"add_generation_prompt": ending == "open", "continue_final_message": ending == "continued"}
    try:
        readable = _with_readable_parts(list(messages), apply)
        text = apply(readable, **options)
    except Exception as error:  # templates raise errors of any kind, such as "roles must alternate"
        raise InputError(
            f"{at}: the tokenizer's chat template fails on it ({type(error).__name__}: {error}); "
            "change its messages, or use another tokenizer"
        ) from error
    _warn_of_unread(
        tokenizer.get_chat_template(None, arguments["tools"]),
        tuple(name for name, value in arguments.items() if value is not None),
    )
    if any("tool_calls" in message for message in readable):
        _check_calls_are_shown(readable, text, partial(apply, **options), at)
    return text


def render_prompt(messages: list[Message], tokenizer: Any, *, at: str) -> str:
    """Render a prompt up to where the model continues: in a new assistant turn, or in the assistant message at its end.

    Raises:
        InputError: as `render`.
    """
    if messages and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        if not is_blank(messages):
            return render(messages, tokenizer, at=at, ending="continued")
        messages = messages[:-1]
    return render(messages, tokenizer, at=at, ending="open")


def join_completion(prompt: list[Message], completion: Text, *, at: str) -> list[Message]:
    """Append a completion to a prompt. Text becomes an assistant message, or continues the one that the prompt ends in.

    Raises:
        InputError: the prompt ends in an assistant message, and the completion begins with another one.
    """
    is_begun = bool(prompt) and prompt[-1]["role"] == "assistant" and not prompt[-1].get("tool_calls")
    if isinstance(completion, str):
        begun = content_text(prompt[-1]) if is_begun else ""
        last = prompt[-1] if is_begun else {"role": "assistant"}
        return (prompt[:-1] if is_begun else prompt) + [last | {"content": begun + completion}]
    if is_begun and completion and completion[0]["role"] == "assistant":
        raise InputError(
            f"{at}: the prompt ends in an assistant message, which the completion continues, but the completion begins "
            "with another one; give the completion as text, or move the prompt's last message into the completion"
        )
    return prompt + completion


@cache
def warn_of_parting(template: str, generation_prompt: str) -> None:
    """Warn, once per template, that completed turns do not begin with the whole generation prompt."""
    del template
    _log.warning(
        "the chat template does not begin completed turns with its whole generation prompt, %r: the loss starts where "
        "they first differ",
        generation_prompt,
    )


def end_of_turn(messages: list[Message], tokenizer: Any, *, at: str) -> tuple[str, int | None]:
    """The text that the template writes after the last message's content, and the token in it that ends the turn.

    Returns:
        The text, and the id of the first added token of the tokenizer in it, or None if there is none.

    Raises:
        InputError: as `render`.
    """
    marked = _replaced(messages, {"role": messages[-1]["role"], "content": _MARK})
    text = render(marked, tokenizer, at=at).rpartition(_MARK)[2]
    added = tokenizer.added_tokens_decoder
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text, next((token for token in ids if token in added), None)


def end_of_turn_token(tokenizer: Any) -> int | None:
    """The token with which the template ends an assistant turn; None if there is no template or no such token."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    try:
        return end_of_turn(messages, tokenizer, at="")[1]
    except InputError:  # the template needs other messages, such as a system message
        return None


def assistant_characters(messages: list[Message], tokenizer: Any, text: str, *, at: str) -> Bool[np.ndarray, " C"]:
    """Which characters of a rendered conversation belong to assistant turns: contents, tool calls, and ends of turns.

    `{% generation %}` tags in the template mark them. Without tags, an assistant turn begins where the generation
    prompt of the messages before it ends, and ends with the text that the template writes after its content.

    Args:
        messages: the conversation.
        tokenizer: a Hugging Face tokenizer.
        text: `render(messages, tokenizer)`.
        at: name of the conversation in errors.

    Raises:
        InputError: a turn cannot be found, because the template renders it differently when messages follow.
    """
    template = tokenizer.get_chat_template(None, _template_arguments(messages)["tools"])
    if _GENERATION_TAG.search(template):
        spans = _tagged_spans(messages, tokenizer, template, text, at)
    else:
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [_turn_span(messages, index, tokenizer, text, at) for index in turns]
    found = np.zeros(len(text), bool)
    for start, stop in spans:
        found[start:stop] = True
    return found


def shared_length(first: Any, second: Any) -> int:
    """The length of the longest common prefix of two sequences."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


@cache  # warn once per template
def _warn_of_unread(template: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            column = "column 'tools'" if name == "tools" else f"chat_template_kwargs' {name!r}"
            _log.warning("%s: the tokenizer's chat template does not read it, so the model will not see it", column)


def _apply(tokenizer: Any, messages: list[Message], **options: Any) -> str:
    with guarded.time_limit(limits.MAX_TEMPLATE_SECONDS):
        return tokenizer.apply_chat_template(messages, **options, tokenize=False)


def _replaced(messages: list[Message], last: Message) -> list[Message]:
    """The messages with the last one replaced."""
    found = messages[:]
    found[-1] = last
    return found


def _template_arguments(messages: list[Message]) -> dict[str, Any]:
    if isinstance(messages, Conversation):
        return {"tools": messages.tools, **messages.template_arguments}
    return {"tools": None}


def _with_readable_parts(messages: list[Message], apply: Callable[[list[Message]], str]) -> list[Message]:
    """Join lists of text parts if the template fails on them or would write them as a Python list."""
    for index, message in enumerate(messages):
        parts = message.get("content")
        if not isinstance(parts, list):
            continue
        before, after = messages[:index], messages[index + 1 :]
        try:
            as_written = apply([*before, message | {"content": str(parts)}, *after])
            is_read = apply([*before, message, *after]) != as_written
        except Exception:  # such as "can only concatenate str (not list)"
            is_read = False
        if not is_read:
            messages = [*before, message | {"content": content_text(message)}, *after]
    return messages


def _check_calls_are_shown(messages: list[Message], text: str, apply: Callable[[list[Message]], str], at: str) -> None:
    without = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
    try:
        is_shown = apply(without) != text
    except Exception:  # a template that fails without them reads them
        is_shown = True
    if not is_shown:
        raise InputError(
            f"{at}: its messages have tool_calls, which the tokenizer's chat template does not write; use a tokenizer "
            "whose template does, or write the calls into the content"
        )


def _tagged_spans(messages: list[Message], tokenizer: Any, template: str, text: str, at: str) -> list[tuple[int, int]]:
    """The spans of the text between the template's generation tags."""
    from transformers.utils.chat_template_utils import render_jinja_template  # slow to import, and seldom needed

    present = [{key: value for key, value in message.items() if value is not None} for message in messages]
    arguments = tokenizer.special_tokens_map | _template_arguments(messages)
    readable = _with_readable_parts(present, partial(_apply, tokenizer, **_template_arguments(messages)))
    with guarded.time_limit(limits.MAX_TEMPLATE_SECONDS):
        rendered, spans = cast(Any, render_jinja_template)(
            conversations=[readable], chat_template=template, return_assistant_tokens_mask=True, **arguments
        )
    assert rendered[0] == text, f"{at}: two renderings of a conversation differ"
    return spans[0]


def _turn_span(messages: list[Message], index: int, tokenizer: Any, text: str, at: str) -> tuple[int, int]:
    """The start and stop of the turn of message `index` in the rendering of all messages."""
    marked = _replaced(messages[: index + 1], messages[index] | {"content": _MARK})
    head, found, tail = render(marked + messages[index + 1 :], tokenizer, at=at).partition(_MARK)
    _, _, turn_end = render(marked, tokenizer, at=at).partition(_MARK)
    upto = render(messages[: index + 1], tokenizer, at=at)
    start = len(head)
    if index:
        awaiting = render(messages[:index], tokenizer, at=at, ending="open")
        closed = render(messages[:index], tokenizer, at=at)
        start = shared_length(awaiting, text)
        if start < shared_length(awaiting, closed):
            raise _ambiguous_turn(at, index)
    # Templates write a newline after the token that ends a turn, where generation has stopped.
    stripped = end_of_turn(messages[: index + 1], tokenizer, at=at)[1] is not None
    if found and text.endswith(tail) and tail.startswith(turn_end):
        stop = len(text) - len(tail) + len(turn_end.rstrip() if stripped else turn_end)
    elif text.startswith(upto):
        stop = len(upto.rstrip() if stripped else upto)
    else:
        raise _ambiguous_turn(at, index)
    return start, stop


def _ambiguous_turn(at: str, index: int) -> InputError:
    return InputError(
        f"{at}: the chat template writes message {index} differently when more messages follow, so the assistant's "
        "turns cannot be distinguished; use a template with {% generation %}, or loss_on=completion"
    )
