"""Rows of data sets as records; the forms and their fields are named as TRL names them."""

from dataclasses import dataclass

Text = str | list[dict[str, str]]
"""A plain text, or a conversation: messages with `role` and `content`."""


@dataclass(frozen=True, kw_only=True)
class LanguageModeling:
    """A text to imitate whole.

    Attributes:
        text: the text or the conversation.
    """

    text: Text


@dataclass(frozen=True, kw_only=True)
class PromptCompletion:
    """An answer to imitate.

    Attributes:
        prompt: what comes before; an empty text where nothing does.
        completion: the answer; messages only where the prompt is messages.
    """

    prompt: Text
    completion: Text


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two answers, one preferred over the other.

    Attributes:
        prompt: what both answer; an empty text where nothing does.
        chosen: the better answer.
        rejected: the worse answer.
    """

    prompt: Text
    chosen: Text
    rejected: Text


@dataclass(frozen=True, kw_only=True)
class UnpairedPreference:
    """One answer, found good or bad.

    Attributes:
        prompt: what is answered; an empty text where nothing is.
        completion: the answer.
        label: True for thumbs up.
    """

    prompt: Text
    completion: Text
    label: bool


@dataclass(frozen=True, kw_only=True)
class BestOfK:
    """Several answers, one of them the best.

    Attributes:
        prompt: what all answer; an empty text where nothing does.
        completions: K answers, two or more.
        best: which of them is the best, in `[0, K)`.
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
