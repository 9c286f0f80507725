"""Items to label: a prompt with its completions, in one of three modes."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, get_args

from jaxrl_lm.errors import InputError

Text = str | list[dict[str, Any]]
"""Plain text, or messages with role, content (text or a list of text parts) and tool calls."""

Mode = Literal["pairwise", "thumbs", "best-of-4"]
MODES: tuple[Mode, ...] = get_args(Mode)
NUM_COMPLETIONS: dict[Mode, int] = {"pairwise": 2, "thumbs": 1, "best-of-4": 4}
"""Completions per item of the mode."""

Pairs = Literal["disjoint", "all"]
"""Which pairs of a prompt's completions are compared: 1-2, 3-4, ...; or all pairs."""

TIE, SKIP, UP, DOWN = "tie", "skip", "up", "down"
VERDICTS: dict[Mode, tuple[str, ...]] = {
    "pairwise": ("0", "1", TIE, SKIP),
    "thumbs": (UP, DOWN, SKIP),
    "best-of-4": ("0", "1", "2", "3", SKIP),
}
"""The verdicts of each mode; a number is the index of the better completion."""


@dataclass(frozen=True, kw_only=True)
class CompletedPrompt:
    """A prompt with its completions.

    Attributes:
        prompt: text or conversation.
        completions: the completions.
        where: where the row comes from, for errors.
        template: columns of the row for the chat template (`tools`, `chat_template_kwargs`), kept for the export.
    """

    prompt: Text
    completions: tuple[Text, ...]
    where: str
    template: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item to label.

    Attributes:
        mode: how it is labelled.
        prompt: text or conversation.
        completions: as many as the mode shows.
        template: as in `CompletedPrompt`.
    """

    mode: Mode
    prompt: Text
    completions: tuple[Text, ...]
    template: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode={self.mode!r} must be one of {', '.join(MODES)}")
        num = NUM_COMPLETIONS[self.mode]
        if len(self.completions) != num:
            raise InputError(
                f"an item of mode {self.mode} needs {num} completions, but has {len(self.completions)}; "
                f"give {num}, or remove the row"
            )

    def content_hash(self) -> str:
        """A hash of the content, independent of the completions' order."""
        parts = [self.mode, text_hash(self.prompt), *sorted(map(text_hash, self.completions))]
        if self.template:
            parts.append(text_hash([self.template]))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ItemList:
    """Items of a source, and what was left out of it.

    Attributes:
        items: in the source's order.
        left_out: location and reason of each completion or pair left out.
    """

    items: list[Item]
    left_out: list[str]


def text_hash(text: Text) -> str:
    """SHA-256 of a text or a conversation, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()


def is_blank(text: Text) -> bool:
    """Whether a completion is blank; of messages, the last counts, as in the data set readers."""
    if isinstance(text, str):
        return not text.strip()
    if not text:
        return True
    said = text[-1].get("content") or ""
    if isinstance(said, list):
        said = "".join(part["text"] for part in said)
    return not said.strip() and not text[-1].get("tool_calls")


def make_items(rows: Iterable[CompletedPrompt], mode: Mode, *, pairs: Pairs = "disjoint") -> ItemList:
    """Build items from prompts with completions.

    Blank completions, and pairs of equal ones, are left out and listed.

    Args:
        rows: prompts with their completions.
        mode: pairs for `pairwise`, single completions for `thumbs`, groups of four for `best-of-4`.
        pairs: which pairs, for `pairwise`.

    Returns:
        At least one item, and what was left out.

    Raises:
        InputError: no item is left.
    """
    items, left_out = [], []
    for row in rows:
        kept = [completion for completion in row.completions if not is_blank(completion)]
        num_blank = len(row.completions) - len(kept)
        if num_blank:
            left_out.append(f"{row.where}: {num_blank} of {len(row.completions)} completions are blank")
        for group in _groups(kept, mode, pairs):
            if len(group) < NUM_COMPLETIONS[mode]:
                left_out.append(f"{row.where}: {len(group)} completions are too few for {mode}")
            elif len(group) > 1 and len(set(map(text_hash, group))) == 1:
                left_out.append(f"{row.where}: the completions are equal")
            else:
                items.append(Item(mode=mode, prompt=row.prompt, completions=group, template=row.template))
    if not items:
        why = f" ({left_out[0]}; {len(left_out)} such)" if left_out else ""
        raise InputError(
            f"completions: no items for mode {mode}{why}; "
            f"give {NUM_COMPLETIONS[mode]} different, non-blank completions per prompt"
        )
    return ItemList(items=items, left_out=left_out)


def _groups(completions: list[Text], mode: Mode, pairs: Pairs) -> Iterator[tuple[Text, ...]]:
    """Completions shown together; the last group may be too small."""
    num = NUM_COMPLETIONS[mode]
    if mode == "pairwise" and pairs == "all" and len(completions) >= num:
        yield from combinations(completions, num)
        return
    for start in range(0, len(completions), num):
        yield tuple(completions[start : start + num])
