"""Tokenizers from model folders."""

from pathlib import Path
from typing import Any

from jaxrl_lm import guarded
from jaxrl_lm.data.chat import end_of_turn_token
from jaxrl_lm.data.generation_config import GenerationDefaults, read_generation_config, write_generation_config
from jaxrl_lm.errors import InputError

# Without any of these transformers makes an empty tokenizer from config.json, and says nothing.
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")

# What transformers reads as JSON, by recursive parsers.
_JSON_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "vocab.json",
)
_PROBE = "Hello, 1st w\u00f6rld!\n"


def load_tokenizer(folder: Path, *, vocab_size: int | None, is_padding_read: bool = False) -> Any:
    """The folder's Hugging Face tokenizer, checked against the model's embedding.

    A pad token may be outside the embedding (GPT-2 with an added `[PAD]`), for padding is masked. So may other special
    tokens that were added and that the tokenizer does not insert by itself: a text that contains one is refused.

    Args:
        folder: a model folder with tokenizer files.
        vocab_size: rows of the model's embedding; None where no model is to read the tokens.
        is_padding_read: whether the pad token must have a row, as in reward models, where torch's classes find a row's
            last token by it: one without is replaced by the end-of-text token.

    Returns:
        The tokenizer. What the folder says about generation is kept with it: see `generation_defaults`.

    Raises:
        InputError: there is no readable tokenizer, it has tokens that the embedding has no row for, or
            generation_config.json is damaged.
    """
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        raise InputError(
            f"{folder}: no tokenizer found (wanted one of {', '.join(_VOCABULARY_FILES)}); "
            "copy the model's tokenizer files into the folder"
        )
    remedy = "put tokenizer.json and tokenizer_config.json next to the weights"
    for name in _JSON_FILES:
        if (folder / name).is_file():
            guarded.read_object(folder / name, remedy=remedy)
    from transformers import AutoTokenizer  # here, since it takes seconds to load

    with guarded.foreign_errors(f"{folder}: no tokenizer could be read", remedy), guarded.held_stderr():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer(_PROBE)["input_ids"])  # some faults show only here, in a panic of Rust
    if vocab_size is not None:
        _fit(tokenizer, folder, vocab_size)
        if is_padding_read and (tokenizer.pad_token_id or 0) >= vocab_size:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.generation_defaults = read_generation_config(folder, vocab_size=vocab_size)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files, and generation_config.json where the model had one, with all stop tokens.

    Args:
        tokenizer: as `load_tokenizer` gave it.
        folder: of the model that was trained with it.
    """
    tokenizer.save_pretrained(folder)
    write_generation_config(folder, generation_defaults(tokenizer), stop_token_ids(tokenizer, ()))


def generation_defaults(tokenizer: Any) -> GenerationDefaults:
    """Generation settings of the folder that a tokenizer was loaded from."""
    return getattr(tokenizer, "generation_defaults", None) or GenerationDefaults()


def padding_token(tokenizer: Any) -> int:
    """The id of the padding token.

    The tokenizer's pad token, else that of generation_config.json, else the end-of-text token, else 0. The tokenizer
    comes first because torch's classes are given rows that it has padded. Padding is masked: no result depends on it.
    """
    for token in (tokenizer.pad_token_id, generation_defaults(tokenizer).pad_token, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def stop_token_ids(tokenizer: Any, stops: tuple[str, ...]) -> tuple[int, ...]:
    """Ids of the tokens that end a completion.

    These are the stop tokens of generation_config.json (chat models often have several), the end-of-text token, the
    end-of-turn token of the chat template, and those given.

    Raises:
        InputError: a given text is not exactly one token.
    """
    ids = list(generation_defaults(tokenizer).stop_tokens)
    ids += [token for token in (tokenizer.eos_token_id, end_of_turn_token(tokenizer)) if token is not None]
    for stop in stops:
        found = tokenizer(stop, add_special_tokens=False)["input_ids"]
        if len(found) != 1:
            raise InputError(
                f"stop={stop!r} is {len(found)} tokens of this tokenizer and must be one; "
                "give a text that is a single token, such as '.' or a special token"
            )
        ids.append(found[0])
    return tuple(dict.fromkeys(ids))


def _fit(tokenizer: Any, folder: Path, vocab_size: int) -> None:
    """Refuse tokens without a row in the embedding, except added special ones, for which texts are checked later."""
    outside = {token: index for token, index in tokenizer.get_vocab().items() if index >= vocab_size}
    inserted = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token)
    is_special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    spare = {index for token, index in outside.items() if index in is_special and token not in inserted}
    tokenizer.unreadable_tokens = frozenset(spare)
    missed = {token: index for token, index in outside.items() if index not in spare}
    if missed:
        first = min(missed, key=lambda token: missed[token])
        raise InputError(
            f"{folder}: the embedding (vocab_size={vocab_size}) has no row for {len(missed)} of the tokenizer's "
            f"{len(tokenizer)} tokens, such as {first!r} (id {missed[first]}). If they were added to it, resize the "
            f"model with transformers, model.resize_token_embeddings({max(outside.values()) + 1}), and save it again; "
            "else the tokenizer belongs to another model"
        )
