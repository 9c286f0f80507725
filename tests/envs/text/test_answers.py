"""Answers are read as text, whatever the tokens: the automaton equals a regular expression in Python."""

import re
from functools import cache

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxrl_lm.envs.text.answers import PADDING, AnswerFormat, make_reader
from jaxrl_lm.envs.text.vocabulary import Vocabulary, byte_vocabulary, vocabulary_of
from jaxrl_lm.errors import InputError

MOVES = ("up", "down", "upper left", "go")
FORMAT = AnswerFormat(moves=MOVES, separator="||", most_moves=2)
LENGTH = 24
CORPUS = ["up || down\n", "upper left||go\n", "go || go\n", " down\n", "xy\n\n", "|| up"] * 50


@cache
def merged_vocabulary() -> Vocabulary:
    """Tokens of several characters, and special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>", "<other>"])
    # Lines as wholes: a token may reach over words, but not say two moves.
    tokenizer.train_from_iterator([line.split("||")[0] for line in CORPUS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", additional_special_tokens=["<other>"])
    return vocabulary_of(fast)


@cache
def jitted(vocabulary: Vocabulary):
    reader = make_reader(FORMAT, vocabulary)
    return jax.jit(jax.vmap(reader.read))


def expected(vocabulary: Vocabulary, tokens: list[int]) -> list[int] | None:
    """The moves of an answer by Python's own means; None if it is illegal."""
    text = b""
    for token in tokens:
        if token < 0:
            continue
        if token in vocabulary.ends:
            break
        part = vocabulary.texts[token] if token < len(vocabulary) else None
        if part is None:
            text += b"\0"
            continue
        text += part
        if b"\n" in part:
            break
    else:
        return None
    line = text.split(b"\n")[0].decode(errors="replace")
    move = "|".join(map(re.escape, MOVES))
    if not re.fullmatch(rf" *({move}) *(\|\| *({move}) *)*", line):
        return None
    return [MOVES.index(each.strip(" ")) for each in line.split("||")]


def read(vocabulary: Vocabulary, rows: list[list[int]]) -> list[list[int] | None]:
    padded = np.full((len(rows), LENGTH), PADDING, np.int32)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    found = jax.device_get(jitted(vocabulary)(padded))
    return [
        [move for move in moves.tolist() if move >= 0] if is_legal else None
        for moves, is_legal in zip(found.moves, found.is_legal, strict=True)
    ]


PIECES = st.sampled_from(["up", "down", "upper left", "go", " ", "  ", "||", "|", "\n", "u", "upper", "left", "x", "é"])


@pytest.mark.parametrize("kind", ["bytes", "merged"])
@given(texts=st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=8, max_size=8))
def test_texts_are_read_as_a_regular_expression_reads_them(kind: str, texts: list[str]) -> None:
    vocabulary = byte_vocabulary() if kind == "bytes" else merged_vocabulary()
    rows = [vocabulary.encode(text + "\n")[:LENGTH] for text in texts]
    answers = [expected(vocabulary, row) for row in rows]
    assert read(vocabulary, rows) == [None if each is None else each[:2] for each in answers]


@given(rows=st.lists(st.lists(st.integers(0, 310), max_size=LENGTH), min_size=8, max_size=8))
def test_any_tokens_are_read_as_their_text(rows: list[list[int]]) -> None:
    vocabulary = merged_vocabulary()
    answers = [expected(vocabulary, row) for row in rows]
    assert read(vocabulary, rows) == [None if each is None else each[:2] for each in answers]


def test_tokens_that_are_split_in_another_way_are_the_same_move() -> None:
    vocabulary = merged_vocabulary()
    whole = vocabulary.encode("upper left\n")
    letters = [token for letter in "upper left\n" for token in vocabulary.encode(letter)]
    assert len(whole) < len(letters)
    assert read(vocabulary, [whole, letters]) == [[2], [2]]


def sentence_piece() -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2's: spaces are letters, one goes before every text, other bytes have tokens."""
    letters = "\u2581abcdefghijklmnopqrstuvwxyz|"
    names = ["<unk>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *letters, "up", "\u2581up"]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [("u", "p"), ("\u2581", "up")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])  # pyright: ignore
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def test_the_space_that_sentence_piece_adds_is_no_part_of_a_text() -> None:
    vocabulary = vocabulary_of(sentence_piece())
    for text in ("up", " up", "up || down\n", "\u00e9\n"):
        assert vocabulary.decode(vocabulary.encode(text)) == text.encode()
    assert read(vocabulary, [vocabulary.encode(text) for text in ("up\n", " up || down\n", "e\n")]) == [
        [0],
        [0, 1],
        None,
    ]


def test_added_tokens_say_what_the_decoder_says_and_unknown_ids_nothing() -> None:
    tokenizer = sentence_piece()
    tokenizer.add_tokens([AddedToken("\u2581\u2581\u2581", normalized=False)])
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.texts[-1] == b"   "
    assert vocabulary.decode([*vocabulary.encode("up"), 10_000, -1]) == b"up"


def test_a_tokenizer_that_drops_spaces_is_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "up": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()  # pyright: ignore
    with pytest.raises(InputError, match="does not keep spaces and line breaks"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))


def test_what_follows_the_stop_is_not_read_and_without_a_stop_nothing_is() -> None:
    vocabulary = byte_vocabulary()
    end = next(iter(vocabulary.ends))
    up = vocabulary.encode("up")
    assert read(vocabulary, [[*up, end, *up], [*up, *vocabulary.encode("\nxx")], up, []]) == [[0], [0], None, None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"moves": ("up", "")}, "must not be empty"),
        ({"moves": ("up", "up ")}, "nor begin or end with a space"),
        ({"moves": ("up", "up left")}, "'up left' begins with the whole move 'up'"),
        ({"moves": ("up", "up")}, "begins with the whole move"),
        ({"moves": ("up",), "most_moves": 0}, "most_moves=0"),
        ({"moves": ("up",), "separator": " "}, "must not be empty"),
    ],
)
def test_formats_that_cannot_be_read_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AnswerFormat(**settings)


def test_a_move_that_the_tokenizer_cannot_express_is_named() -> None:
    letters = Vocabulary(
        (b"u", b"p", b"\n"), frozenset(), lambda text: ["up\n".index(each) for each in text if each in "up\n"]
    )
    with pytest.raises(InputError, match=r"the move 'down': tokenizer: it cannot express 'down'"):
        make_reader(AnswerFormat(moves=("up", "down")), letters)


def test_a_token_with_two_moves_is_refused() -> None:
    texts = (b"a", b"b", b"|", b"\n", b"a|b|")
    odd = Vocabulary(texts, frozenset(), lambda text: ["ab|\n".index(each) for each in text])
    with pytest.raises(InputError, match=r"'a\|b\|' says two moves"):
        make_reader(AnswerFormat(moves=("a", "b"), separator="|", most_moves=3), odd)
