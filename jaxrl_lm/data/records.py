"""Records of data sets; forms and fields have the names of TRL."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

Message = dict[str, Any]
"""`role`, and `content`: text or a list of text parts; missing only if there are `tool_calls`. Other keys are kept."""


class Conversation(list[Message]):
    """A list of messages with the columns of its row that the chat template uses.

    It equals any list of the same messages. Slices and sums keep `tools` and `template_arguments`.

    Attributes:
        tools: functions that the model may call, as JSON schemas (column `tools`); None for none.
        template_arguments: variables of the template by name (column `chat_template_kwargs`).
    """

    def __init__(
        self,
        messages: Iterable[Message] = (),
        *,
        tools: list[dict[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(messages)
        self.tools = tools
        self.template_arguments = dict(template_arguments or {})

    def with_messages(self, messages: Iterable[Message]) -> "Conversation":
        """Other messages with the same tools and template arguments."""
        return Conversation(messages, tools=self.tools, template_arguments=self.template_arguments)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> "Conversation": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Message | Conversation":
        found = super().__getitem__(index)
        return self.with_messages(found) if isinstance(index, slice) else found  # pyright: ignore

    def __add__(self, other: list[Message]) -> "Conversation":  # pyright: ignore
        return self.with_messages([*self, *other])


Text = str | list[Message]
"""Plain text, or a conversation: messages with `role` and `content`, as a `Conversation` if it has tools."""


def template_columns(text: Text) -> dict[str, Any]:
    """The columns of a conversation's row that go to the chat template, `tools` and `chat_template_kwargs`, if any.

    JSON drops them from a `Conversation`, so whatever writes one as JSON writes these columns next to it.
    """
    if not isinstance(text, Conversation):
        return {}
    columns = {"tools": text.tools, "chat_template_kwargs": text.template_arguments}
    return {name: value for name, value in columns.items() if value}


def content_text(message: Message) -> str:
    """The content of a message with its text parts joined; empty if there is none."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


@dataclass(frozen=True, kw_only=True)
class LanguageModeling:
    """A text to imitate whole.

    Attributes:
        text: the text or the conversation.
    """

    text: Text


@dataclass(frozen=True, kw_only=True)
class PromptCompletion:
    """A completion to imitate.

    Attributes:
        prompt: the prompt; may be empty.
        completion: the completion; messages only if the prompt is messages.
    """

    prompt: Text
    completion: Text


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two completions, one preferred over the other.

    Attributes:
        prompt: their prompt; may be empty.
        chosen: the better completion.
        rejected: the worse completion.
    """

    prompt: Text
    chosen: Text
    rejected: Text


@dataclass(frozen=True, kw_only=True)
class UnpairedPreference:
    """A completion with a binary label.

    Attributes:
        prompt: its prompt; may be empty.
        completion: the completion.
        label: True for thumbs up.
    """

    prompt: Text
    completion: Text
    label: bool


@dataclass(frozen=True, kw_only=True)
class BestOfK:
    """Several completions, one of them the best.

    Attributes:
        prompt: their prompt; may be empty.
        completions: K completions, two or more.
        best: index of the best, in `[0, K)`.
    """

    prompt: Text
    completions: tuple[Text, ...]
    best: int


@dataclass(frozen=True, kw_only=True)
class Rating:
    """A text with a number that people gave it.

    Attributes:
        text: what was rated.
        rating: higher is better; labels by sign take 0 as the middle.
    """

    text: str
    rating: float
