"""Tokenise texts for a reward model, and score them in batches of a few widths."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from jaxrl_lm import data, distributed
from jaxrl_lm.data.chat import join_completion
from jaxrl_lm.data.encoding import encode_completion, encode_conversation, encode_prompt
from jaxrl_lm.data.fields import is_blank
from jaxrl_lm.data.records import Message, Text, content_text
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import RewardModel, inputs
from jaxrl_lm.types import PyTree

SMALLEST_WIDTH = 16
ScoreInputs = dict[str, Int32[np.ndarray, "..."]]


@dataclass(frozen=True, kw_only=True)
class ScoreTokens:
    """Tokens of a prompt and its completion for a reward model.

    Attributes:
        ids: token ids, at least one.
        token_types: 0 for the prompt, 1 for the completion; the segments of an encoder.
        is_cut: whether the text was truncated: the start of the prompt (or the end of the completion) is missing.
    """

    ids: list[int]
    token_types: list[int]
    is_cut: bool


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """Converts texts to the input of a reward model.

    A decoder reads a plain prompt followed by its completion, without end-of-text token. It reads a conversation as
    the chat template renders it, including the end of the last turn, even if the completion was truncated. The score is
    taken where torch's `AutoModelForSequenceClassification` takes it: at the last token that is not the pad token of
    the configuration, which in many models is the end-of-text token. An encoder reads
    `[CLS] prompt [SEP] completion [SEP]`, or `[CLS] completion [SEP]` if the prompt is empty.

    Attributes:
        tokenizer: tokenizer of the reward model.
        pad_token: id of the padding.
        max_tokens: maximum length of a row, in tokens.
        is_causal: whether the model is a decoder.
        cut_token: id that is stripped from the end of a decoder's rows; None strips nothing.
        num_token_types: segments of the model; with 1 every token is in segment 0.
    """

    tokenizer: Any
    pad_token: int
    max_tokens: int
    is_causal: bool
    cut_token: int | None = None
    num_token_types: int = 1

    def encode(self, prompt: Text, completion: Text) -> ScoreTokens:
        """Token ids of a prompt and its completion, which may be empty.

        Raises:
            InputError: the tokenizer has no chat template that renders the conversation.
        """
        return self._encode_causal(prompt, completion) if self.is_causal else self._encode_pair(prompt, completion)

    def stack(self, rows: list[ScoreTokens], width: int) -> ScoreInputs:
        """Rows as arrays `[B, width]`, padded on the right: `input_ids`, `attention_mask`, `token_type_ids`."""
        ids = np.full((len(rows), width), self.pad_token, np.int32)
        mask, types = np.zeros((2, len(rows), width), np.int32)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = row.ids
            mask[index, : len(row.ids)] = 1
            types[index, : len(row.ids)] = row.token_types
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def width(self, num_tokens: int) -> int:
        """The smallest width for this many tokens: a power of two or 1.5 times one, to limit the compiled shapes."""
        width = SMALLEST_WIDTH
        while width < num_tokens:
            width = width * 3 // 2 if width & (width - 1) == 0 else width // 3 * 4
        return min(width, self.max_tokens)

    def _encode_causal(self, prompt: Text, completion: Text) -> ScoreTokens:
        if not isinstance(prompt, str):
            at = f"completion {excerpt(completion)} of the prompt {excerpt(prompt)}"
            ids = encode_conversation(join_completion(prompt, completion, at=at), self.tokenizer, at=at)
        elif not is_blank(completion):
            ids = encode_completion(prompt, completion, self.tokenizer, is_ended=False).ids
        else:
            ids = encode_prompt(prompt, self.tokenizer, at="a prompt with an empty answer") if prompt else []
        while ids and ids[-1] == self.cut_token:
            ids = ids[:-1]
        kept = self._cut(ids) or [0]
        return ScoreTokens(ids=kept, token_types=[0] * len(kept), is_cut=len(kept) < len(ids))

    def _cut(self, ids: list[int]) -> list[int]:
        """The last `max_tokens` tokens; a BOS token is kept in front of them."""
        is_begun = self.max_tokens > 1 and ids[:1] == [self.tokenizer.bos_token_id]
        if len(ids) <= self.max_tokens or not is_begun:
            return ids[-self.max_tokens :]
        return [ids[0], *ids[1 - self.max_tokens :]]

    def _encode_pair(self, prompt: Text, completion: Text) -> ScoreTokens:
        begin, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        first, second = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
            for text in (plain_text(prompt), plain_text(completion))
        )
        # A text that already contains its special tokens must not get them twice.
        first, second = first[first[:1] == [begin] :], second[second[:1] == [begin] :]
        first, second = (ids[:-1] if ids[-1:] == [end] else ids for ids in (first, second))
        num_tokens = len(first) + len(second)
        room = self.max_tokens - (3 if first else 2)
        second = second[: max(1, room)]
        first = first[max(0, len(first) + len(second) - room) :]
        head = [begin, *first, end] if first else [begin]
        tail = [*second, end]
        segment = 1 if first and self.num_token_types > 1 else 0
        is_cut = len(first) + len(second) < num_tokens
        return ScoreTokens(ids=head + tail, token_types=[0] * len(head) + [segment] * len(tail), is_cut=is_cut)


def make_reader(model: RewardModel, tokenizer: Any, max_tokens: int | None = None) -> TextReader:
    """The reader for a model.

    Args:
        model: a reward model.
        tokenizer: its tokenizer.
        max_tokens: maximum length of a text, in tokens; None for the model's context.

    Raises:
        InputError: the model's context is shorter, or an encoder's tokenizer has no [CLS] and [SEP].
    """
    longest = model.config.max_positions
    if max_tokens is not None and not 4 <= max_tokens <= longest:
        raise InputError(f"max_tokens={max_tokens} must be between 4 and the model's context, {longest}")
    is_causal = model.family.is_causal
    if not is_causal and (tokenizer.cls_token_id is None or tokenizer.sep_token_id is None):
        raise InputError("the encoder's tokenizer has no [CLS] or [SEP] token; use the encoder's own tokenizer")
    pad_token = model.config.hf_config().get("pad_token_id")
    return TextReader(
        tokenizer=tokenizer,
        pad_token=data.padding_token(tokenizer) if pad_token is None else pad_token,
        max_tokens=longest if max_tokens is None else max_tokens,
        is_causal=is_causal,
        cut_token=pad_token,
        num_token_types=getattr(model.config, "num_token_types", 1),
    )


def apply_model(model: RewardModel, params: PyTree, batch: PyTree) -> jax.Array:
    """Scores `[B]` of a batch from `TextReader.stack`."""
    extra = {} if model.family.is_causal else {"token_type_ids": batch["token_type_ids"]}
    output: Any = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"], **extra)
    return output.scores


_score_batch = distributed.counted(jax.jit(apply_model, static_argnums=0))


def score_rows(
    model: RewardModel, params: PyTree, reader: TextReader, rows: list[ScoreTokens], *, batch_size: int
) -> Float32[np.ndarray, " N"]:
    """Score rows in batches of equal size, grouped by length.

    Args:
        model: a reward model.
        params: its parameters.
        reader: the model's reader.
        rows: N rows.
        batch_size: rows per batch; the last batch is padded.

    Returns:
        One score per row, in the order of the rows.

    Raises:
        InputError: a row has an id outside the vocabulary.
    """
    scores = np.zeros(len(rows), np.float32)
    for chosen in _batches(rows, batch_size):
        width = reader.width(max(len(rows[i].ids) for i in chosen))
        filled = [rows[i] for i in np.resize(chosen, batch_size)]
        batch = reader.stack(filled, width)
        inputs.check_token_ids(batch["input_ids"], batch["attention_mask"], model.config)
        found = distributed.on_host(_score_batch(model, params, distributed.place_batch(batch)))
        scores[chosen] = found[: len(chosen)]
    return scores


def plain_text(text: Text) -> str:
    """A text, or the contents and tool calls of a conversation, one per line, with their role if there are several."""
    if isinstance(text, str):
        return text
    said = [content_text(message) + _calls_text(message) for message in text]
    if len(text) == 1:
        return said[0]
    return "\n".join(f"{message['role']}: {each}" for message, each in zip(text, said, strict=True))


def _calls_text(message: Message) -> str:
    return json.dumps(message["tool_calls"], ensure_ascii=False) if message.get("tool_calls") else ""


def _batches(rows: list[ScoreTokens], batch_size: int) -> Iterator[np.ndarray]:
    order = np.argsort([len(row.ids) for row in rows], kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
