"""What a model folder says about generation: read, refused, named as left out, and carried over."""

import json

import pytest
from transformers import GenerationConfig

from jaxrl_lm import data
from jaxrl_lm.data.generation_config import read_generation_config, warn_left_out
from jaxrl_lm.errors import InputError
from tests.byte_model import END_OF_TEXT, write_byte_model

LLAMA3 = {
    "bos_token_id": 128000,
    "do_sample": True,
    "eos_token_id": [128001, 128009],
    "max_length": 4096,
    "temperature": 0.6,
    "top_p": 0.9,
    "transformers_version": "4.40.0.dev0",
}
QWEN = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "transformers_version": "4.37.0",
}


def read(folder, content, vocab_size=200_000):
    (folder / "generation_config.json").write_text(json.dumps(content))
    return read_generation_config(folder, vocab_size=vocab_size)


def test_files_as_published_are_read_whole(tmp_path):
    llama = read(tmp_path, LLAMA3)
    assert llama.stop_tokens == (128001, 128009)
    assert llama.pad_token is None
    assert llama.sampling == {"temperature": 0.6, "top_p": 0.9}
    assert llama.left_out == ("max_length=4096",)
    qwen = read(tmp_path, QWEN)
    assert qwen.stop_tokens == (151645, 151643)
    assert qwen.pad_token == 151643
    assert qwen.sampling == {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    assert qwen.left_out == ()


def test_without_sampling_the_likeliest_token_is_taken(tmp_path):
    assert read(tmp_path, {"do_sample": False, "temperature": 0.6}).sampling == {"temperature": 0.0}


def test_lengths_and_suppressed_tokens_are_read(tmp_path):
    content = {"max_new_tokens": 9, "min_new_tokens": 2, "suppress_tokens": [3, -1, 300], "eos_token_id": None}
    found = read(tmp_path, content, vocab_size=257)
    assert found.sampling == {"max_new_tokens": 9, "min_new_tokens": 2, "suppress_tokens": (3,)}
    assert found.stop_tokens == ()


def test_defaults_of_hugging_face_are_not_left_out_and_all_else_is_named(tmp_path):
    defaults = GenerationConfig._get_default_generation_params() | GenerationConfig().to_dict()
    assert read(tmp_path, {name: value for name, value in defaults.items() if name != "top_k"}).left_out == ()
    content = {"num_beams": 4, "no_repeat_ngram_size": 3, "begin_suppress_tokens": [1], "of_tomorrow": "x"}
    left_out = ("num_beams=4", "no_repeat_ngram_size=3", "begin_suppress_tokens=[1]", "of_tomorrow='x'")
    assert read(tmp_path, content).left_out == left_out


def test_ids_outside_the_vocabulary_are_left_out(tmp_path):
    found = read(tmp_path, {"eos_token_id": [5, 300], "pad_token_id": -1}, vocab_size=257)
    assert (found.stop_tokens, found.pad_token) == ((5,), None)
    assert found.left_out == ("eos_token_id=300 (not in the vocabulary)",)


@pytest.mark.parametrize(("eos", "found"), [([7, 9], (7, 9)), (7, ())])
def test_without_the_file_several_stop_tokens_of_the_configuration_count(tmp_path, eos, found):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": eos, "temperature": 0.1}))
    defaults = read_generation_config(tmp_path, vocab_size=257)
    assert (defaults.stop_tokens, defaults.sampling, defaults.content) == (found, {}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"eos_token_id": "2"}, "eos_token_id='2' must be a token id"),
        ({"eos_token_id": [2.5]}, r"eos_token_id=\[2.5\] must be"),
        ({"pad_token_id": True}, "pad_token_id=True must be"),
        ({"do_sample": "false"}, "do_sample='false' must be true or false"),
        ({"temperature": "warm"}, "temperature='warm' must be a number"),
        ({"top_k": [50]}, r"top_k=\[50\] must be a number"),
        ([], ".*not a JSON object"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, content, message):
    with pytest.raises(InputError, match=f"generation_config.json: {message}"):
        read(tmp_path, content)
    for text in ("{", "[" * 100_000):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(InputError, match=r"generation_config.json.*JSON"):
            read_generation_config(tmp_path, vocab_size=9)


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory):
    """A model folder without generation_config.json."""
    folder = tmp_path_factory.mktemp("models") / "byte"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    return folder


@pytest.fixture
def tokenizer_with(byte_folder):
    """Loads the tokenizer of the folder with a given generation_config.json."""

    def load(content):
        (byte_folder / "generation_config.json").write_text(json.dumps(content))
        return data.load_tokenizer(byte_folder, vocab_size=257)

    yield load
    (byte_folder / "generation_config.json").unlink()


def test_stop_tokens_are_those_of_the_file_the_tokenizer_and_the_options(tokenizer_with):
    tokenizer = tokenizer_with({"eos_token_id": [65, 66], "pad_token_id": 3})
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    full_stop = tokenizer.convert_tokens_to_ids(".")
    assert data.stop_token_ids(tokenizer, (".",)) == (65, 66, end, full_stop)
    assert data.padding_token(tokenizer) == end
    tokenizer.pad_token = None
    assert data.padding_token(tokenizer) == 3


def test_nothing_left_out_is_no_warning(tokenizer_with, caplog):
    warn_left_out(data.generation_defaults(tokenizer_with({"eos_token_id": 65, "top_k": 3})), is_learning=False)
    assert not caplog.records


def test_a_trained_model_gets_the_file_with_every_stop_token(tokenizer_with, tmp_path):
    content = {"temperature": 0.6, "eos_token_id": [65, 66], "of_tomorrow": [1]}
    tokenizer = tokenizer_with(content)
    data.save_tokenizer(tokenizer, tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == content | {"eos_token_id": [65, 66, tokenizer.eos_token_id]}
    again = data.load_tokenizer(tmp_path, vocab_size=257)
    assert data.stop_token_ids(again, ()) == data.stop_token_ids(tokenizer, ())


def test_no_file_is_made_where_there_was_none(byte_folder, tmp_path):
    data.save_tokenizer(data.load_tokenizer(byte_folder, vocab_size=257), tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
