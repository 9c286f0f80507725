"""Tokenise texts and completions for training; conversations use the tokenizer's chat template."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxrl_lm.data.chat import (
    assistant_characters,
    end_of_turn,
    join_completion,
    render,
    render_prompt,
    shared_length,
    warn_of_parting,
)
from jaxrl_lm.data.fields import is_blank
from jaxrl_lm.data.records import Message, Text
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """Token ids of a text that begins with a prompt.

    Attributes:
        ids: tokens of the prompt, then of the completion.
        num_prompt_tokens: how many of them belong to the prompt; 0 if all are targets.
        is_assistant: whether a token after the prompt belongs to an assistant turn; None if not requested.
    """

    ids: list[int]
    num_prompt_tokens: int
    is_assistant: list[bool] | None = None

    def __getitem__(self, part: slice) -> "EncodedText":
        """The tokens `[start:stop]`."""
        start, _, _ = part.indices(len(self.ids))
        flags = None if self.is_assistant is None else self.is_assistant[part]
        return EncodedText(
            ids=self.ids[part], num_prompt_tokens=max(0, self.num_prompt_tokens - start), is_assistant=flags
        )


def encode_prompt(prompt: Text, tokenizer: Any, *, at: str) -> list[int]:
    """Tokenise a prompt for generation.

    Args:
        prompt: plain text, which gets the tokenizer's usual special tokens, or a conversation, which is rendered with
            the chat template up to the start of the assistant's turn, or to the end of its last message.
        tokenizer: a Hugging Face tokenizer.
        at: name of the prompt in errors.

    Raises:
        InputError: the tokenizer cannot render a conversation.
    """
    if isinstance(prompt, str):
        return _readable(_one_bos(prompt, tokenizer(prompt)["input_ids"], tokenizer), tokenizer, at=at)
    return _readable(_tokens(render_prompt(prompt, tokenizer, at=at), tokenizer), tokenizer, at=at)


def encode_text(text: Text, tokenizer: Any, *, is_assistant_marked: bool = False) -> EncodedText:
    """Tokenise a whole text. The last token is the end-of-text token, or that which ends a conversation's last turn.

    Args:
        text: plain text or a conversation.
        tokenizer: a Hugging Face tokenizer.
        is_assistant_marked: mark the tokens of assistant turns; only for conversations.

    Returns:
        The tokens; `num_prompt_tokens` is 0.

    Raises:
        InputError: the text has no tokens, the conversation cannot be rendered, or its assistant turns cannot be found.
    """
    at = f"text {excerpt(text)}"
    if isinstance(text, str):
        _check_not_marked(is_assistant_marked, at)
        ids, _, end = _with_special_tokens(text, tokenizer)
        if not ids:
            raise InputError(f"{at}: the tokenizer makes no token of it; remove it or use another tokenizer")
        _readable(ids, tokenizer, at=at)
        return EncodedText(ids=_end_plain(ids, end, tokenizer, is_ended=True), num_prompt_tokens=0)
    written = render(text, tokenizer, at=at)
    ids = _readable(_tokens(written, tokenizer), tokenizer, at=at)
    rendered = _Rendered(tokenizer=tokenizer, pieces=[written], ids=ids, num_prompt_tokens=0)
    if is_assistant_marked:
        rendered = rendered.marked(assistant_characters(text, tokenizer, written, at=at), at)
    return rendered.ended({end_of_turn(text, tokenizer, at=at)[1], tokenizer.eos_token_id}, text).encoded()


def encode_conversation(messages: list[Message], tokenizer: Any, *, at: str) -> list[int]:
    """Token ids of a whole conversation exactly as the chat template renders it.

    Args:
        messages: the conversation, with the completion.
        tokenizer: a Hugging Face tokenizer.
        at: name of the conversation in errors.

    Raises:
        InputError: the conversation cannot be rendered.
    """
    return _readable(_tokens(render(messages, tokenizer, at=at), tokenizer), tokenizer, at=at)


def encode_completion(
    prompt: Text, completion: Text, tokenizer: Any, *, is_ended: bool = True, is_assistant_marked: bool = False
) -> EncodedText:
    """Tokenise a prompt followed by its completion and its end.

    The prompt tokens are those of `encode_prompts`, so the model learns the completion at the position where it
    generates one. Some templates, such as those of reasoning models, render a completed conversation differently from
    an open one; then the prompt tokens are the common prefix of both.

    Args:
        prompt: plain text, which may be empty, or a conversation.
        completion: the completion. After a conversation it may be plain text: an assistant message, or the rest of the
            message that the prompt ends in.
        tokenizer: a Hugging Face tokenizer. Special tokens around plain text (BERT's `[CLS]` and `[SEP]`) enclose
            prompt and completion together.
        is_ended: whether the completion is complete. If so, the last token is the one with which the template ends a
            turn, or else the end-of-text token. A completion that was cut off has no end.
        is_assistant_marked: mark the tokens of assistant turns in the completion; only after a conversation.

    Returns:
        The tokens, with at least one of the completion.

    Raises:
        InputError: the completion is empty, or is messages after a plain-text prompt, the conversation cannot be
            rendered, or its assistant turns cannot be found.
    """
    at = f"completion {excerpt(completion)} of the prompt {excerpt(prompt)}"
    if isinstance(prompt, str):
        if not isinstance(completion, str):
            raise InputError(f"{at}: messages after a plain-text prompt; give both as text, or both as messages")
        _check_not_marked(is_assistant_marked, at)
        encoded = _encode_plain(prompt, completion, tokenizer, at, is_ended=is_ended)
        _readable(encoded.ids, tokenizer, at=at)
        return encoded
    if is_blank(completion):
        raise InputError(f"{at}: the completion is empty; fill it in or remove the row")
    messages = join_completion(prompt, completion, at=at)
    awaiting = render_prompt(prompt, tokenizer, at=at)
    answered = render(messages, tokenizer, at=at)
    _check_prompt_is_kept(answered, awaiting, prompt, tokenizer, at)
    turn_end, end_token = end_of_turn(messages, tokenizer, at=at)
    said = answered if is_ended else answered.removesuffix(turn_end)
    rendered = _split_after_prompt(said, awaiting, tokenizer, at)
    if is_assistant_marked:
        rendered = rendered.marked(assistant_characters(messages, tokenizer, answered, at=at), at)
    if is_ended:
        rendered = rendered.ended({end_token, tokenizer.eos_token_id}, messages)
    _readable(rendered.ids, tokenizer, at=at)
    return rendered.encoded()


@dataclass(frozen=True, kw_only=True)
class _Rendered:
    """A rendered conversation as tokens.

    Attributes:
        tokenizer: the tokenizer.
        pieces: texts that were tokenised one by one; if there are two, the first is the prompt.
        ids: their tokens.
        num_prompt_tokens: how many of them belong to the prompt.
        is_assistant: whether each token belongs to an assistant turn; None if not requested.
    """

    tokenizer: Any
    pieces: list[str]
    ids: list[int]
    num_prompt_tokens: int
    is_assistant: list[bool] | None = None

    def marked(self, is_written: Bool[np.ndarray, " C"], at: str) -> "_Rendered":
        """Mark the tokens that contain any of these characters of the text as the assistant's."""
        if not self.tokenizer.is_fast:
            raise InputError(f"{at}: loss_on=assistant needs a fast tokenizer (tokenizer.json), which has offsets")
        flags, first = [], 0
        for piece in self.pieces:
            found = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            flags += [bool(is_written[first + a : first + max(a + 1, b)].any()) for a, b in found["offset_mapping"]]
            first += len(piece)
        behind = [index >= self.num_prompt_tokens and flag for index, flag in enumerate(flags)]
        return replace(self, is_assistant=behind)

    def ended(self, ends: set[int | None], messages: list[Message]) -> "_Rendered":
        """Cut the tokens after the last one that ends a turn; without one, append the end-of-text token.

        Templates write a newline after that token, which is never generated.
        """
        eos, length = self.tokenizer.eos_token_id, len(self.ids)
        last = max((i for i in range(self.num_prompt_tokens, length) if self.ids[i] in ends), default=length)
        if last < length and not self.tokenizer.decode(self.ids[last + 1 :]).strip():
            flags = None if self.is_assistant is None else self.is_assistant[: last + 1]
            return replace(self, ids=self.ids[: last + 1], is_assistant=flags)
        if eos is None:
            return self
        flags = None if self.is_assistant is None else [*self.is_assistant, messages[-1]["role"] == "assistant"]
        return replace(self, ids=[*self.ids, eos], is_assistant=flags)

    def encoded(self) -> EncodedText:
        """The record."""
        return EncodedText(ids=self.ids, num_prompt_tokens=self.num_prompt_tokens, is_assistant=self.is_assistant)


def _split_after_prompt(said: str, awaiting: str, tokenizer: Any, at: str) -> _Rendered:
    """Tokens of a rendered conversation; their common prefix with the prompt for generation is the prompt."""
    ids, prompt_ids = _tokens(said, tokenizer), _tokens(awaiting, tokenizer)
    num_shared = shared_length(ids, prompt_ids)
    if num_shared == len(prompt_ids) or not said.startswith(awaiting):
        return _Rendered(tokenizer=tokenizer, pieces=[said], ids=ids, num_prompt_tokens=num_shared)
    # A token spans the border. Generation starts after the prompt's own tokens, so the completion must as well.
    rest = said[len(awaiting) :]
    split, added = prompt_ids + _tokens(rest, tokenizer), tokenizer.added_tokens_decoder
    if sum(token in added for token in split) != sum(token in added for token in ids):
        raise InputError(
            f"{at}: the chat template's generation prompt ends inside a special token of the completed conversation "
            f"(…{said[max(0, len(awaiting) - 20) : len(awaiting) + 20]!r}); correct the template"
        )
    return _Rendered(tokenizer=tokenizer, pieces=[awaiting, rest], ids=split, num_prompt_tokens=len(prompt_ids))


def _check_prompt_is_kept(answered: str, awaiting: str, prompt: list[Message], tokenizer: Any, at: str) -> None:
    """Refuse a template that renders the prompt's messages differently when a completion follows."""
    if answered.startswith(awaiting):
        return
    num_kept = shared_length(awaiting, render(prompt, tokenizer, at=at))
    if shared_length(awaiting, answered) < num_kept:
        raise InputError(
            f"{at}: the tokenizer's chat template writes the prompt's messages differently when a completion follows, "
            "so the model would not learn it where it generates it; use another tokenizer or plain texts"
        )
    warn_of_parting(str(tokenizer.chat_template), awaiting[num_kept:])


def _check_not_marked(is_assistant_marked: bool, at: str) -> None:
    if is_assistant_marked:
        raise InputError(f"{at}: loss_on=assistant: plain text has no turns; give messages, or use another loss_on")


def _encode_plain(prompt: str, completion: str, tokenizer: Any, at: str, *, is_ended: bool) -> EncodedText:
    if not completion:
        raise InputError(f"{at}: the completion is empty; fill it in or remove the row")
    ids, prompt_ids, end = _with_special_tokens(completion, tokenizer, prompt)
    if len(ids) <= len(prompt_ids):
        raise InputError(f"{at}: the tokenizer makes no token of the completion; remove it or use another tokenizer")
    ids = _end_plain(ids, end, tokenizer, is_ended=is_ended)
    return EncodedText(ids=ids, num_prompt_tokens=len(prompt_ids))


def _with_special_tokens(text: str, tokenizer: Any, prompt: str = "") -> tuple[list[int], list[int], list[int]]:
    """Tokens of prompt and text together, those of the prompt, and the special tokens that follow both."""
    encoded = tokenizer(prompt + text, return_special_tokens_mask=True)
    ids, is_special = encoded["input_ids"], encoded["special_tokens_mask"]
    if all(is_special):
        return [], [], []
    num_end = is_special[::-1].index(0)
    ids, end = ids[: len(ids) - num_end], ids[len(ids) - num_end :]
    ids = _one_bos(prompt + text, ids, tokenizer)
    prompt_ids = tokenizer(prompt)["input_ids"]
    prompt_ids = _one_bos(prompt, prompt_ids[: len(prompt_ids) - num_end], tokenizer)
    if ids[: len(prompt_ids)] != prompt_ids:
        # A token spans the border. Generation starts after the prompt's own tokens, so the completion must as well.
        ids = prompt_ids + _tokens(text, tokenizer)
    return ids, prompt_ids, end


def _one_bos(text: str, ids: list[int], tokenizer: Any) -> list[int]:
    """Remove the special token that the tokenizer put in front of a text that already begins with it."""
    if len(ids) < 2 or ids[0] != ids[1] or ids[0] not in tokenizer.added_tokens_decoder:
        return ids
    is_written = text.startswith(tokenizer.added_tokens_decoder[ids[0]].content)
    return ids[1:] if is_written and tokenizer("")["input_ids"][:1] == ids[:1] else ids


def _end_plain(ids: list[int], end: list[int], tokenizer: Any, *, is_ended: bool) -> list[int]:
    eos = tokenizer.eos_token_id
    ids = ids + [token for token in end if token != eos]
    if is_ended and eos is not None and ids[-1] != eos:
        ids.append(eos)
    return ids


def _tokens(text: str, tokenizer: Any) -> list[int]:
    """Tokens without the tokenizer's special tokens, because the template has written them."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _readable(ids: list[int], tokenizer: Any, *, at: str) -> list[int]:
    """Return the ids; refuse special tokens without a row in the embedding, which `load_tokenizer` lists."""
    unreadable = getattr(tokenizer, "unreadable_tokens", frozenset()).intersection(ids)
    if unreadable:
        token = tokenizer.convert_ids_to_tokens(min(unreadable))
        raise InputError(
            f"{at}: it contains {token!r}, a token that the model's embedding has no row for; remove it from the text, "
            "or resize the model with transformers: model.resize_token_embeddings(len(tokenizer))"
        )
    return ids
