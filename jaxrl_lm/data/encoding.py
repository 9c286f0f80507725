"""Texts and answers as token ids, for learning from them; conversations through the tokenizer's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxrl_lm import guarded
from jaxrl_lm.data.records import Text
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError
from jaxrl_lm.guarded import limits

# A private character, which no template looks for or strips.
_MARK = "\ue000"


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """Token ids of a text that begins with a prompt.

    Attributes:
        ids: tokens of the prompt, then of the completion.
        num_prompt_tokens: how many of them are the prompt's; 0 where all are to be learnt.
    """

    ids: list[int]
    num_prompt_tokens: int


def encode_prompt(prompt: Text, tokenizer: Any, *, at: str) -> list[int]:
    """Turn a prompt into the token ids that generation is given for it.

    Args:
        prompt: plain text, which gets the special tokens that the tokenizer adds by itself, or a conversation,
            which goes through the chat template up to where the assistant's turn begins.
        tokenizer: a Hugging Face tokenizer.
        at: which prompt this is, for errors.

    Raises:
        InputError: the tokenizer cannot render a conversation.
    """
    if isinstance(prompt, str):
        return _readable(tokenizer(prompt)["input_ids"], tokenizer, at=at)
    return _readable(_tokens(_render(prompt, tokenizer, at, is_open=True), tokenizer), tokenizer, at=at)


def encode_text(text: Text, tokenizer: Any) -> EncodedText:
    """Turn a whole text into token ids, the end-of-text token last.

    Args:
        text: plain text or a conversation.
        tokenizer: a Hugging Face tokenizer.

    Returns:
        The tokens; `num_prompt_tokens` is 0.

    Raises:
        InputError: the text has no tokens, or the tokenizer cannot render a conversation.
    """
    at = f"text {excerpt(text)}"
    if isinstance(text, str):
        ids, _, end = _with_special_tokens(text, tokenizer)
        if not ids:
            raise InputError(f"{at}: the tokenizer makes no token of it; remove it or use another tokenizer")
        _readable(ids, tokenizer, at=at)
        return EncodedText(ids=_end_plain(ids, end, tokenizer, is_ended=True), num_prompt_tokens=0)
    ids = _readable(_tokens(_render(text, tokenizer, at, is_open=False), tokenizer), tokenizer, at=at)
    return EncodedText(ids=_end_turn(ids, 0, tokenizer), num_prompt_tokens=0)


def encode_conversation(messages: list[dict[str, str]], tokenizer: Any, *, at: str) -> list[int]:
    """Token ids of a whole conversation, just as the chat template renders it: nothing is added, nothing cut.

    Args:
        messages: of the conversation, its answer among them.
        tokenizer: a Hugging Face tokenizer.
        at: which conversation this is, for errors.

    Raises:
        InputError: the tokenizer cannot render it.
    """
    return _readable(_tokens(_render(messages, tokenizer, at, is_open=False), tokenizer), tokenizer, at=at)


def encode_completion(prompt: Text, completion: Text, tokenizer: Any, *, is_ended: bool = True) -> EncodedText:
    """Turn a prompt and its answer into token ids: the prompt's, the answer's, the end-of-text token.

    The prompt's tokens begin what `encode_prompts` makes of the prompt, so an answer is learnt in the place where it
    is generated. Usually they are all of it; a template may write a conversation with its answer otherwise than one
    that awaits it (TRL meets this the same way), and then only what both share is the prompt's.

    Args:
        prompt: plain text, which may be empty, or a conversation.
        completion: the answer. After a conversation it may be plain, and is then the assistant's one message.
        tokenizer: a Hugging Face tokenizer. The special tokens that it puts around a plain text (BERT's `[CLS]` and
            `[SEP]`) stand around prompt and answer together.
        is_ended: whether the answer is whole: it then ends with the end-of-text token, which is added unless the
            template has; an answer that was cut off has none, nor what a template writes at the end of a turn.

    Returns:
        The tokens; at least one is the answer's.

    Raises:
        InputError: the answer is empty, its kind does not fit the prompt's, or the tokenizer cannot render a
            conversation.
    """
    at = f"completion {excerpt(completion)} of the prompt {excerpt(prompt)}"
    if isinstance(prompt, str) and isinstance(completion, str):
        encoded = _encode_plain(prompt, completion, tokenizer, at, is_ended=is_ended)
    elif isinstance(prompt, str):
        raise InputError(f"{at}: messages after a plain prompt; give both as text, or both as messages")
    else:
        turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        encoded = _encode_turns(prompt, turns, tokenizer, at, is_ended=is_ended)
    _readable(encoded.ids, tokenizer, at=at)
    return encoded


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences share at their beginnings."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _encode_plain(prompt: str, completion: str, tokenizer: Any, at: str, *, is_ended: bool) -> EncodedText:
    if not completion:
        raise InputError(f"{at}: the completion is empty; fill it in or remove the row")
    ids, prompt_ids, end = _with_special_tokens(completion, tokenizer, prompt)
    if len(ids) <= len(prompt_ids):
        raise InputError(f"{at}: the tokenizer makes no token of the completion; remove it or use another tokenizer")
    ids = _end_plain(ids, end, tokenizer, is_ended=is_ended)
    return EncodedText(ids=ids, num_prompt_tokens=len(prompt_ids))


def _with_special_tokens(text: str, tokenizer: Any, prompt: str = "") -> tuple[list[int], list[int], list[int]]:
    """Tokens of prompt and text; those of the prompt, which begin them; the special ones that belong behind both."""
    encoded = tokenizer(prompt + text, return_special_tokens_mask=True)
    ids, is_special = encoded["input_ids"], encoded["special_tokens_mask"]
    if all(is_special):
        return [], [], []
    num_end = is_special[::-1].index(0)
    ids, end = ids[: len(ids) - num_end], ids[len(ids) - num_end :]
    prompt_ids = tokenizer(prompt)["input_ids"]
    prompt_ids = prompt_ids[: len(prompt_ids) - num_end]
    if ids[: len(prompt_ids)] != prompt_ids:
        # A token spans the border. Generation starts after the prompt's own tokens, and so must what is learnt.
        ids = prompt_ids + _tokens(text, tokenizer)
    return ids, prompt_ids, end


def _end_plain(ids: list[int], end: list[int], tokenizer: Any, *, is_ended: bool) -> list[int]:
    eos = tokenizer.eos_token_id
    ids = ids + [token for token in end if token != eos]
    if is_ended and eos is not None and ids[-1] != eos:
        ids.append(eos)
    return ids


def _encode_turns(
    prompt: list[dict[str, str]], turns: list[dict[str, str]], tokenizer: Any, at: str, *, is_ended: bool
) -> EncodedText:
    if not turns or not turns[-1]["content"].strip():
        raise InputError(f"{at}: the completion is empty; fill it in or remove the row")
    awaiting = _render(prompt, tokenizer, at, is_open=True)
    answered = _render([*prompt, *turns], tokenizer, at, is_open=False)
    shared = awaiting[: shared_length(awaiting, answered)]
    if shared != awaiting:
        _check_prompt_is_kept(shared, awaiting, prompt, tokenizer, at)
    shared_ids = _tokens(shared, tokenizer)
    # The shared text may end inside a token of the prompt; then that token is not the prompt's.
    num_prompt_tokens = shared_length(shared_ids, _tokens(awaiting, tokenizer))
    if not is_ended:
        answered = answered.removesuffix(_end_of_turn([*prompt, *turns], tokenizer, at))
    ids = _tokens(answered, tokenizer)
    if ids[:num_prompt_tokens] != shared_ids[:num_prompt_tokens]:
        ids = shared_ids + _tokens(answered[len(shared) :], tokenizer)
    if is_ended:
        ids = _end_turn(ids, num_prompt_tokens, tokenizer)
    return EncodedText(ids=ids, num_prompt_tokens=num_prompt_tokens)


def _check_prompt_is_kept(shared: str, awaiting: str, prompt: list[dict[str, str]], tokenizer: Any, at: str) -> None:
    """Refuse a template that writes the prompt's own messages anew once they are answered."""
    if len(shared) < shared_length(awaiting, _render(prompt, tokenizer, at, is_open=False)):
        raise InputError(
            f"{at}: the tokenizer's chat template writes the prompt's messages otherwise once an answer follows, so "
            "the answer would not be learnt where it is generated; use another tokenizer or plain texts"
        )


def _end_of_turn(messages: list[dict[str, str]], tokenizer: Any, at: str) -> str:
    """What the template writes behind the last message's content; the content itself could hold the same."""
    marked = [*messages[:-1], messages[-1] | {"content": _MARK}]
    return _render(marked, tokenizer, at, is_open=False).rpartition(_MARK)[2]


def _end_turn(ids: list[int], start: int, tokenizer: Any) -> list[int]:
    """End with the end-of-text token; templates write a line's end behind it, where generation has stopped."""
    eos = tokenizer.eos_token_id
    if eos is None:
        return ids
    if eos in ids[start:]:
        end = len(ids) - ids[::-1].index(eos)
        if not tokenizer.decode(ids[end:]).strip():
            return ids[:end]
    return [*ids, eos]


def _render(messages: list[dict[str, str]], tokenizer: Any, at: str, *, is_open: bool) -> str:
    """The conversation as text, special tokens included; open: up to where the assistant's turn begins."""
    if tokenizer.chat_template is None:
        raise InputError(
            f"{at}: a conversation, but the tokenizer has no chat template; "
            "give plain prompts, or a tokenizer with a chat template"
        )
    try:
        with guarded.time_limit(limits.MAX_TEMPLATE_SECONDS):
            return tokenizer.apply_chat_template(messages, add_generation_prompt=is_open, tokenize=False)
    except Exception as error:  # a template raises whatever it likes, such as "roles must alternate"
        raise InputError(
            f"{at}: the tokenizer's chat template fails on it ({type(error).__name__}: {error}); "
            "change its messages, or use another tokenizer"
        ) from error


def _tokens(text: str, tokenizer: Any) -> list[int]:
    """Tokens without the special ones that the tokenizer would add; a template has written its own."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _readable(ids: list[int], tokenizer: Any, *, at: str) -> list[int]:
    """The ids, unless one is a special token that the embedding has no row for (`load_tokenizer` notes which)."""
    unreadable = getattr(tokenizer, "unreadable_tokens", frozenset()).intersection(ids)
    if unreadable:
        token = tokenizer.convert_ids_to_tokens(min(unreadable))
        raise InputError(
            f"{at}: it contains {token!r}, a token that the model's embedding has no row for; remove it from the text, "
            "or resize the model with transformers: model.resize_token_embeddings(len(tokenizer))"
        )
    return ids
