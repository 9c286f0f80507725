"""Texts as what a reward model reads, and their scores in batches of few widths."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from jaxrl_lm import data
from jaxrl_lm.data.chat import join_answer
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
    """Prompt and answer as a reward model reads them.

    Attributes:
        ids: token ids, at least one.
        token_types: 0 for the prompt's, 1 for the answer's; an encoder's segments.
        is_cut: whether the text was too long, so that the prompt's beginning (or the answer's end) is missing.
    """

    ids: list[int]
    token_types: list[int]
    is_cut: bool


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """Turns texts into what a reward model reads.

    A decoder reads a plain prompt and the answer behind it, and no end-of-text token. It reads a conversation as the
    chat template renders it whole, the end of the answer's turn included, whether or not a policy's answer has come to
    its end. It is scored where torch's `AutoModelForSequenceClassification` scores the same tokens: at the last one
    that is not the configuration's pad token, which in many models is the end-of-text token. An encoder reads
    `[CLS] prompt [SEP] answer [SEP]`, or `[CLS] answer [SEP]` where the prompt is empty.

    Attributes:
        tokenizer: of the reward model.
        pad_token: stands in padding.
        max_tokens: longest row, tokens.
        is_causal: whether the model is a decoder.
        cut_token: rows of a decoder are cut before those of it that they end with; None cuts nothing.
        num_token_types: segments that the model tells apart; 1 gives every token segment 0.
    """

    tokenizer: Any
    pad_token: int
    max_tokens: int
    is_causal: bool
    cut_token: int | None = None
    num_token_types: int = 1

    def encode(self, prompt: Text, completion: Text) -> ScoreTokens:
        """Token ids of a prompt and its answer, which may be empty.

        Raises:
            InputError: a conversation, and the tokenizer has no chat template that renders it.
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
        """The narrowest width that holds so many tokens: a power of two, or half as much again; few are compiled."""
        width = SMALLEST_WIDTH
        while width < num_tokens:
            width = width * 3 // 2 if width & (width - 1) == 0 else width // 3 * 4
        return min(width, self.max_tokens)

    def _encode_causal(self, prompt: Text, completion: Text) -> ScoreTokens:
        if not isinstance(prompt, str):
            at = f"completion {excerpt(completion)} of the prompt {excerpt(prompt)}"
            ids = encode_conversation(join_answer(prompt, completion, at=at), self.tokenizer, at=at)
        elif not is_blank(completion):
            ids = encode_completion(prompt, completion, self.tokenizer, is_ended=False).ids
        else:
            ids = encode_prompt(prompt, self.tokenizer, at="a prompt with an empty answer") if prompt else []
        while ids and ids[-1] == self.cut_token:
            ids = ids[:-1]
        kept = self._cut(ids) or [0]
        return ScoreTokens(ids=kept, token_types=[0] * len(kept), is_cut=len(kept) < len(ids))

    def _cut(self, ids: list[int]) -> list[int]:
        """The last `max_tokens` tokens; a token that begins every text (BOS) stays in front of them."""
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
        # A text that was written with its special tokens does not get them twice.
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
    """The reader that fits a model.

    Args:
        model: a reward model.
        tokenizer: its own.
        max_tokens: longest text, tokens; None for what the model holds.

    Raises:
        InputError: the model holds fewer tokens, or an encoder's tokenizer has no [CLS] and [SEP].
    """
    longest = model.config.max_positions
    if max_tokens is not None and not 4 <= max_tokens <= longest:
        raise InputError(f"max_tokens={max_tokens} must lie between 4 and what the model holds, {longest}")
    is_causal = model.family.is_causal
    if not is_causal and (tokenizer.cls_token_id is None or tokenizer.sep_token_id is None):
        raise InputError("the encoder's tokenizer has no [CLS] or [SEP] token; use the tokenizer that belongs to it")
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
    """Scores `[B]` of rows as `TextReader.stack` makes them."""
    extra = {} if model.family.is_causal else {"token_type_ids": batch["token_type_ids"]}
    output: Any = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"], **extra)
    return output.scores


_score_batch = partial(jax.jit, static_argnums=0)(apply_model)


def score_rows(
    model: RewardModel, params: PyTree, reader: TextReader, rows: list[ScoreTokens], *, batch_size: int
) -> Float32[np.ndarray, " N"]:
    """Scores of rows, computed in batches of equal size whose rows are about equally long.

    Args:
        model: a reward model.
        params: its parameters.
        reader: made for the model.
        rows: N rows.
        batch_size: rows a batch; the last one is filled up.

    Returns:
        One score a row, in the rows' order.

    Raises:
        InputError: a row has an id outside the vocabulary.
    """
    scores = np.zeros(len(rows), np.float32)
    for chosen in _batches(rows, batch_size):
        width = reader.width(max(len(rows[i].ids) for i in chosen))
        filled = [rows[i] for i in np.resize(chosen, batch_size)]
        batch = reader.stack(filled, width)
        inputs.check_token_ids(batch["input_ids"], batch["attention_mask"], model.config)
        found = _score_batch(model, params, batch)
        scores[chosen] = np.asarray(found)[: len(chosen)]
    return scores


def plain_text(text: Text) -> str:
    """A text, or a conversation's contents and tool calls, one a line, each behind its role unless it is alone."""
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
