"""Tokenizers from model folders."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from jaxrl_lm import guarded
from jaxrl_lm.data.chat import end_of_turn_token
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


def load_tokenizer(folder: Path, *, vocab_size: int | None) -> Any:
    """The folder's Hugging Face tokenizer, checked against the model's embedding.

    Args:
        folder: a model folder with tokenizer files.
        vocab_size: rows of the model's embedding; None where no model is to read the tokens.

    Raises:
        InputError: there is no readable tokenizer, or it has tokens that the embedding has no row for.
    """
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        raise InputError(
            f"{folder}: no tokenizer found (wanted one of {', '.join(_VOCABULARY_FILES)}); "
            "copy the model's tokenizer files into the folder"
        )
    remedy = "put tokenizer.json and tokenizer_config.json beside the weights"
    for name in _JSON_FILES:
        if (folder / name).is_file():
            guarded.read_object(folder / name, remedy=remedy)
    with guarded.foreign_errors(f"{folder}: no tokenizer could be read", remedy), guarded.held_stderr():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer(_PROBE)["input_ids"])  # some faults show only here, in a panic of Rust
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the embedding (vocab_size) has {vocab_size} rows; "
            "the tokenizer belongs to another model"
        )
    return tokenizer


def padding_token(tokenizer: Any) -> int:
    """The id that stands in padding: the tokenizer's pad token, else its end-of-text token, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def stop_token_ids(tokenizer: Any, stops: tuple[str, ...]) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: end of text, end of a turn in the chat template, and each given one.

    Raises:
        InputError: a given text is not exactly one token.
    """
    ids = [token for token in (tokenizer.eos_token_id, end_of_turn_token(tokenizer)) if token is not None]
    for stop in stops:
        found = tokenizer(stop, add_special_tokens=False)["input_ids"]
        if len(found) != 1:
            raise InputError(
                f"stop={stop!r} is {len(found)} tokens of this tokenizer and must be one; "
                "give a text that is a single token, such as '.' or a special token"
            )
        ids.append(found[0])
    return tuple(dict.fromkeys(ids))
