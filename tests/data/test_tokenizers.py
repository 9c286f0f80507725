"""Tokens that the embedding has no row for: padding is read nowhere and may be one, others are refused."""

import shutil

import pytest
from transformers import AutoTokenizer

from jaxrl_lm import data
from jaxrl_lm.data.encoding import encode_conversation, encode_prompt
from jaxrl_lm.errors import InputError
from tests.byte_model import END_OF_TEXT, write_byte_model

VOCAB_SIZE = 257
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model folder whose padding is the end-of-text token."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    return folder


def with_tokens(source, folder, **special):
    """The folder with special tokens added to its tokenizer, and to nothing else."""
    shutil.copytree(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(special)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def padded(plain, tmp_path_factory):
    """The most common recipe: GPT-2 with an added `[PAD]`, and its embedding as it was."""
    return with_tokens(plain, tmp_path_factory.mktemp("models") / "padded", pad_token="[PAD]")


def test_an_added_pad_token_is_accepted_and_kept(padded, tmp_path):
    tokenizer = data.load_tokenizer(padded, vocab_size=VOCAB_SIZE)
    assert (tokenizer.pad_token, data.padding_token(tokenizer)) == ("[PAD]", VOCAB_SIZE)
    data.save_tokenizer(tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == VOCAB_SIZE


def test_reward_models_pad_with_a_token_that_torch_can_read(padded, tmp_path):
    tokenizer = data.load_tokenizer(padded, vocab_size=VOCAB_SIZE, is_padding_read=True)
    assert tokenizer.pad_token == END_OF_TEXT
    assert data.padding_token(tokenizer) == VOCAB_SIZE - 1
    data.save_tokenizer(tokenizer, tmp_path)
    again = data.load_tokenizer(tmp_path, vocab_size=VOCAB_SIZE)
    assert again.pad_token == END_OF_TEXT
    with pytest.raises(InputError, match=r"contains '\[PAD\]'"):  # it is still in the vocabulary
        encode_prompt("hi [PAD]", again, at="x")


def test_a_pad_token_written_in_a_text_is_refused(padded):
    tokenizer = data.load_tokenizer(padded, vocab_size=VOCAB_SIZE)
    assert max(encode_prompt("PAD]", tokenizer, at="x")) < VOCAB_SIZE
    turn = [{"role": "user", "content": "hi [PAD]"}]
    for encode in (
        lambda: encode_prompt("hi [PAD]", tokenizer, at="x"),
        lambda: encode_prompt(turn, tokenizer, at="x"),
        lambda: encode_conversation(turn, tokenizer, at="x"),
        lambda: data.encode_text("hi [PAD]", tokenizer),
        lambda: data.encode_text(turn, tokenizer),
        lambda: data.encode_completion("hi", "[PAD]", tokenizer),
        lambda: data.encode_completion(turn, "hi", tokenizer),
    ):
        with pytest.raises(InputError, match=r"contains '\[PAD\]', a token that the model's embedding has no row for"):
            encode()


@pytest.mark.parametrize(
    "special",
    [
        {"eos_token": "<x>"},
        {"eos_token": "<x>", "pad_token": "<x>"},
    ],
)
def test_other_added_tokens_are_refused_with_the_way_to_resize(plain, tmp_path, special):
    folder = with_tokens(plain, tmp_path / "model", **special)
    size = len(AutoTokenizer.from_pretrained(folder))
    with pytest.raises(InputError, match=rf"no row for . of .*'<x>'.*resize_token_embeddings\({size}\)"):
        data.load_tokenizer(folder, vocab_size=VOCAB_SIZE)
    assert data.load_tokenizer(folder, vocab_size=size).eos_token is not None


def test_other_added_special_tokens_are_refused_where_a_text_has_them(plain, tmp_path):
    folder = with_tokens(plain, tmp_path / "model", additional_special_tokens=["<x>", "<y>"])
    tokenizer = data.load_tokenizer(folder, vocab_size=VOCAB_SIZE)
    assert encode_prompt("x y", tokenizer, at="x") == tokenizer("x y")["input_ids"]
    with pytest.raises(InputError, match=r"contains '<y>'.*resize the model"):
        encode_prompt("hi <y>", tokenizer, at="x")


def test_added_words_are_refused_with_the_way_to_resize(plain, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.add_tokens(["qqq"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"'qqq' \(id 257\).*resize_token_embeddings\(258\)"):
        data.load_tokenizer(tmp_path, vocab_size=VOCAB_SIZE)
