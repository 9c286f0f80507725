"""Prompts from files or the hub: reading, tokenising, padding and batching."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from jaxrl_lm.core.host_streams import Stream, host_generator
from jaxrl_lm.data.columns import check_column
from jaxrl_lm.data.encoding import encode_prompt
from jaxrl_lm.data.fields import as_conversation, check_encodable, check_messages
from jaxrl_lm.data.misfits import collect_records
from jaxrl_lm.data.records import Conversation, Text, content_text
from jaxrl_lm.data.rows import excerpt, try_rows
from jaxrl_lm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row of a prompt-only data set, named as TRL names its formats.

    Attributes:
        prompt: text or messages; with the columns `tools` or `chat_template_kwargs`, messages are a `Conversation`.
        columns: all other columns of the row, for the reward function.
    """

    prompt: Text
    columns: dict[str, Any]

    def __post_init__(self) -> None:
        if isinstance(self.prompt, list) and not isinstance(self.prompt, Conversation):
            object.__setattr__(self, "prompt", as_conversation(self.prompt, self.columns, "prompt"))

    def text(self) -> str:
        """The prompt for people to read; a conversation as lines of role and content."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(f"{message['role']}: {content_text(message)}" for message in self.prompt)

    def as_chat(self) -> "Prompt":
        """The prompt with plain text wrapped as a user message."""
        if not isinstance(self.prompt, str):
            return self
        return replace(self, prompt=[{"role": "user", "content": self.prompt}])


def read_prompts(source: str, *, column: str = "prompt", chat: bool = False, limit: int | None = None) -> list[Prompt]:
    """Read prompts from a file or from a data set of the hub.

    A row that does not fit is left out and listed in a warning with its line; more than 1 % of such rows are an error,
    unless the read ended at `limit`, before the source did.

    Args:
        source: `.jsonl`, `.json` (a list of objects), `.csv`, `.tsv` or `.parquet`; any other file is plain
            text with one prompt a line; each may end in `.gz`. Or `hub:NAME[[:CONFIG]:SPLIT]`, by default the split
            `train`.
        column: the column that holds the prompt; plain text has no columns and ignores it.
        chat: wrap each prompt that is plain text as a user's message.
        limit: read no further than this many prompts; None reads all.

    Returns:
        The prompts in the order of the source, at least one.

    Raises:
        InputError: the source cannot be read, its table lacks the column, over 1 % of its rows do not fit, or none is
            left.
    """

    def parse(row: dict[str, Any], where: str) -> list[Prompt]:
        check_column(column, list(row), where)
        prompt = _to_prompt(row, column, where)
        return [prompt.as_chat() if chat else prompt]

    rows = try_rows(source, line_column=column, required=column)
    return collect_records(source, rows, parse, limit=limit)


def encode_prompts(prompts: list[Prompt], tokenizer: Any, *, max_tokens: int) -> list[list[int]]:
    """Tokenise prompts; conversations are rendered with the tokenizer's chat template.

    Args:
        prompts: plain or conversational prompts.
        tokenizer: a Hugging Face tokenizer; plain prompts get its usual special tokens.
        max_tokens: maximum length of a prompt, in tokens.

    Returns:
        The token ids of each prompt, 1 to `max_tokens` of them.

    Raises:
        InputError: a prompt is too long or has no tokens, or the tokenizer cannot render a conversation.
    """
    encoded = []
    for index, prompt in enumerate(prompts):
        at = f"prompt {index} (counting from 0), {excerpt(prompt.prompt)}"
        ids = encode_prompt(prompt.prompt, tokenizer, at=at)
        if not ids:
            raise InputError(f"{at}: the tokenizer makes no token of it; remove it or use another tokenizer")
        if len(ids) > max_tokens:
            raise InputError(
                f"{at}: {len(ids)} tokens, but the limit is {max_tokens}; shorten or remove it, or raise the limit"
            )
        encoded.append(ids)
    return encoded


def left_pad(
    sequences: list[list[int]], *, pad_id: int, width: int
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]:
    """Stack sequences with padding on their left.

    Args:
        sequences: token ids, at most `width` each.
        pad_id: token id of the padding.
        width: T, tokens.

    Returns:
        The token ids, and the mask: 1 at tokens, 0 at padding.
    """
    ids = np.full((len(sequences), width), pad_id, np.int32)
    mask = np.zeros((len(sequences), width), np.int32)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence)
        assert start >= 0, f"sequence {row} has {len(sequence)} tokens, the width is {width}"
        ids[row, start:] = sequence
        mask[row, start:] = 1
    return ids, mask


def bucket_width(lengths: Iterable[int], *, longest: int) -> int:
    """A width for sequences of these lengths: a multiple of 16, and from 256 on of an eighth of the next power of two
    below, that holds the longest of them.

    So a few widths, each with programs of its own, serve all batches.

    Args:
        lengths: of the sequences of a batch, in tokens.
        longest: of all sequences; no width is larger.
    """
    length = max(lengths)
    step = max(16, 2 ** (length.bit_length() - 4))
    return min(-(-length // step) * step, longest)


def prompt_order(num_prompts: int, batch_size: int, step: int, seed: int) -> Int64[np.ndarray, " B"]:
    """Indices of the prompts in batch `step`, a pure function of its arguments, so resuming needs no state.

    Batch k is the slice `[k B, (k + 1) B)` of an endless stream of permutations of the prompts, one per epoch; that of
    epoch e is drawn with `(seed, e)`. A batch may span epochs and may be larger than one.

    Args:
        num_prompts: number of prompts, at least 1.
        batch_size: B.
        step: index of the batch, from 0.
        seed: random seed, at least 0.

    Returns:
        Indices of prompts, each in `[0, num_prompts)`.
    """
    epochs, offsets = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_prompts)
    order = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        is_epoch = epochs == epoch
        permutation = host_generator(Stream.PROMPT_ORDER, seed, int(epoch)).permutation(num_prompts)
        order[is_epoch] = permutation[offsets[is_epoch]]
    return order


def _to_prompt(row: dict[str, Any], column: str, where: str) -> Prompt:
    prompt = row[column]
    at = f"{where}, column {column!r}"
    if isinstance(prompt, list):
        prompt = as_conversation(check_messages(prompt, at), row, where)
        texts = [content_text(message) for message in prompt]
    elif isinstance(prompt, str):
        texts = [prompt]
    else:
        raise InputError(f"{at}: {excerpt(prompt)} is not text; give text, or a list of messages")
    if not any(text.strip() for text in texts):
        raise InputError(f"{at}: the prompt is blank; fill it in or remove the row")
    if isinstance(prompt, str):
        check_encodable(prompt, at)
    return Prompt(prompt=prompt, columns={name: value for name, value in row.items() if name != column})
