"""What a tokenizer's tokens say, as bytes, so that programs on the device can read and write text."""

import hashlib
import json
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

from jaxrl_lm.errors import InputError

_PROBES = ("\n", " ", "#")


class Vocabulary:
    """The tokens of a tokenizer as bytes.

    Equal if all tokens are, so that environments that hold one can be static arguments of `jit`.

    Attributes:
        texts: of each token id, UTF-8; None of a special token, which is no text.
        ends: ids of the special tokens that end a text.
    """

    def __init__(
        self, texts: tuple[bytes | None, ...], ends: frozenset[int], encode: Callable[[str], list[int]]
    ) -> None:
        """Take what a tokenizer knows; `encode` gives the tokens of a text without special ones."""
        self.texts, self.ends, self._encode = texts, ends, encode

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _digest(self) -> bytes:
        parts = [b"\0" if text is None else b"\1" + text for text in self.texts]
        lengths = ",".join(str(len(part)) for part in parts)
        return hashlib.sha256(b"|".join([lengths.encode(), str(sorted(self.ends)).encode(), *parts])).digest()

    def encode(self, text: str) -> list[int]:
        """Tokens whose texts make up `text`.

        Raises:
            InputError: the tokenizer has none.
        """
        ids = self._encode(text)
        if self.decode(ids) != text.encode():
            raise InputError(
                f"tokenizer: it cannot express {text!r}: its tokens say {self.decode(ids).decode(errors='replace')!r}; "
                "choose a byte-level tokenizer, or one that knows these characters"
            )
        return ids

    def decode(self, ids: list[int]) -> bytes:
        """The text of tokens; special ones, padding and unknown ids are left out."""
        return b"".join(self.texts[index] or b"" for index in ids if 0 <= index < len(self.texts))


def byte_vocabulary() -> Vocabulary:
    """256 tokens, one per byte, and 256 for the end of a text."""
    texts = (*(bytes([value]) for value in range(256)), None)
    return Vocabulary(texts, frozenset({256}), lambda text: list(text.encode()))


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer.

    Args:
        tokenizer: a fast tokenizer that keeps every character of a text: a byte-level one (as GPT-2's, Llama 3's,
            Qwen's), or SentencePiece's with byte fallback (as Llama 2's, Gemma's).

    Raises:
        InputError: it is another kind, such as BERT's, which drops spaces and line breaks.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"tokenizer: {type(tokenizer).__name__} is not a fast tokenizer; save it with tokenizer.json")
    described = json.dumps(json.loads(backend.to_str()).get("decoder"), ensure_ascii=False)
    if '"ByteLevel"' in described:
        to_bytes = _byte_level
    elif "\u2581" in described or '"Metaspace"' in described:
        to_bytes = _sentence_piece
    else:
        raise InputError(
            "tokenizer: it does not keep spaces and line breaks as they are; choose a model with a byte-level or a "
            "SentencePiece tokenizer"
        )
    added = tokenizer.added_tokens_decoder
    specials = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}

    def text_of(index: int, name: str | None) -> bytes | None:
        if name is None or index in specials:
            return None
        return to_bytes(name)

    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = tuple(text_of(index, name) for index, name in enumerate(names))
    ends = {index for index in (tokenizer.eos_token_id, tokenizer.pad_token_id) if index is not None}

    def encode(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # SentencePiece puts a space before a text; after a line break it does not.
        if to_bytes is _sentence_piece:
            first = tokenizer("\n", add_special_tokens=False)["input_ids"]
            whole = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
            ids = whole[len(first) :] if whole[: len(first)] == first else ids
        return ids

    found = Vocabulary(texts, frozenset(ends), encode)
    for probe in _PROBES:
        found.encode(probe)
    return found


def _byte_level(name: str) -> bytes:
    table = _byte_of_character()
    # As the decoder: a name with another character is an added token, which stands for itself.
    return bytes(table[each] for each in name) if table.keys() >= set(name) else name.encode()


def _sentence_piece(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable}
    return table | {chr(256 + index): value for index, value in enumerate(others)}
