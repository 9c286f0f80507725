"""Completions outside of learning: what the options, the folder and the defaults decide."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer, GenerationConfig

from jaxrl_lm import data, rollouts
from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.rollouts import generation
from jaxrl_lm.rollouts.answers import AnswerConfig
from jaxrl_lm.training.answering import AnsweringConfig, answer_prompts

GREEDY = AnsweringConfig(temperature=0.0, max_new_tokens=6)
PROMPTS = [Prompt(prompt=text, columns={}) for text in ("ab", "abcde", "a")]


@pytest.fixture
def folder(byte_model, tmp_path):
    """A copy of the model, to write into."""
    return shutil.copytree(byte_model, tmp_path / "model", ignore=shutil.ignore_patterns("generation_config.json"))


@pytest.fixture
def tokenizer_with(folder):
    """Loads the tokenizer of the folder with a given generation_config.json."""

    def load(content):
        (folder / "generation_config.json").write_text(json.dumps(content))
        return data.load_tokenizer(folder, vocab_size=257)

    return load


def test_options_come_before_the_file_and_the_file_before_the_defaults(tokenizer_with):
    content = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05, "suppress_tokens": [9], "eos_token_id": 65}
    tokenizer = tokenizer_with(content)
    found = AnsweringConfig(temperature=0.9, top_p=0.5).sampling(tokenizer)
    assert (found.temperature, found.top_p) == (0.9, 0.5)
    assert (found.top_k, found.repetition_penalty, found.suppress_tokens) == (20, 1.05, (9,))
    assert (found.max_new_tokens, found.min_new_tokens) == (64, 0)
    plain = AnsweringConfig(generation_config=False).sampling(tokenizer)
    assert (plain.temperature, plain.top_k, plain.repetition_penalty, plain.suppress_tokens) == (1.0, 0, 1.0, ())
    assert plain.stop_tokens == found.stop_tokens == data.stop_token_ids(tokenizer, ())


def test_a_value_out_of_range_names_the_file(tokenizer_with):
    tokenizer = tokenizer_with({"top_p": 1.5})
    with pytest.raises(
        InputError, match=r"generation_config.json: top_p=1.5 must be above 0 and at most 1; correct it"
    ):
        AnsweringConfig().sampling(tokenizer)
    assert AnsweringConfig(top_p=0.9).sampling(tokenizer).top_p == 0.9


def test_learning_uses_the_stop_tokens_alone_and_says_so_once(tokenizer_with, caplog):
    tokenizer = tokenizer_with({"temperature": 0.6, "top_p": 0.9, "num_beams": 2, "eos_token_id": [65, 66]})
    with caplog.at_level(logging.WARNING):
        sampling = AnswerConfig(max_new_tokens=5).sampling(tokenizer)
        AnswerConfig().sampling(tokenizer)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert sampling.stop_tokens[:2] == (65, 66)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("generation_config.json: not supported and left out: num_beams=2")
    assert "generation_config.json: left out: temperature=0.6, top_p=0.9; " in second


SAMPLES = "has no do_sample, so Hugging Face decodes greedily; completions are sampled here, at temperature "
ALL_TOKENS = "has no top_k, so Hugging Face samples from the 50 most likely tokens"


@pytest.mark.parametrize(
    ("content", "options", "temperature", "said"),
    [
        ({}, {}, 1.0, SAMPLES + "1;"),
        ({"temperature": 0.6}, {}, 0.6, SAMPLES + "0.6;"),
        ({}, {"temperature": 0.0}, 0.0, None),
        ({}, {"temperature": 0.5}, 0.5, None),
        ({}, {"generation_config": False}, 1.0, None),
        ({"do_sample": False}, {}, 0.0, None),
        ({"do_sample": True}, {}, 1.0, ALL_TOKENS),
        ({"do_sample": True}, {"temperature": 0.0}, 0.0, None),
        ({"temperature": 0.0}, {}, 0.0, None),
        ({"do_sample": True}, {"top_k": 0}, 1.0, None),
        ({"do_sample": True, "top_k": 20}, {}, 1.0, None),
    ],
)
def test_where_hugging_face_would_decode_otherwise_it_is_said(
    tokenizer_with, caplog, content, options, temperature, said
):
    hugging_face = GenerationConfig._get_default_generation_params()
    assert (hugging_face["do_sample"], hugging_face["top_k"]) == (False, 50)
    tokenizer = tokenizer_with({"eos_token_id": 65} | content)
    with caplog.at_level(logging.WARNING):
        assert AnsweringConfig(**options).sampling(tokenizer).temperature == temperature
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (said is not None)
    assert all(f"generation_config.json: {said}" in message for message in messages)


def test_training_samples_whatever_the_file_says(tokenizer_with):
    for content in ({"do_sample": False}, {"eos_token_id": 65}):
        assert AnswerConfig(max_new_tokens=5).sampling(tokenizer_with(content)).temperature == 1.0


@pytest.fixture
def answer_ids(monkeypatch):
    """The answers' token ids: the bytes that a random model draws are seldom text."""

    def spell(_, generation):
        rows = zip(np.asarray(generation.actions), np.asarray(generation.response_mask), strict=True)
        return [" ".join(map(str, tokens[mask == 1])) for tokens, mask in rows]

    monkeypatch.setattr(rollouts, "decode", spell)

    def answer(folder, config):
        return [[int(token) for token in row.split()] for row in answer_prompts(folder, PROMPTS, config)]

    return answer


def test_every_stop_token_of_the_file_ends_an_answer(folder, answer_ids):
    whole = answer_ids(folder, GREEDY)
    stops = [row[2] for row in whole]
    content = {"eos_token_id": stops, "do_sample": False, "max_new_tokens": 6}
    (folder / "generation_config.json").write_text(json.dumps(content))
    ends = [next(place for place, token in enumerate(row) if token in stops) for row in whole]
    expected = [row[: end + 1] for row, end in zip(whole, ends, strict=True)]
    assert answer_ids(folder, AnsweringConfig()) == expected
    assert len(whole[0]) == 6
    assert max(ends) <= 2


def test_repetition_penalty_of_the_file_applies_unless_an_option_is_given(folder, answer_ids):
    plain = answer_ids(folder, GREEDY)
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 100.0}))
    assert any(len(set(row)) < len(row) for row in plain)
    assert all(len(set(row)) == len(row) for row in answer_ids(folder, GREEDY))
    for changes in ({"repetition_penalty": 1.0}, {"generation_config": False}):
        assert answer_ids(folder, replace(GREEDY, **changes)) == plain


def test_a_last_batch_that_is_not_full_changes_no_answer_and_compiles_nothing(folder, answer_ids):
    config = AnsweringConfig(temperature=1.0, max_new_tokens=7, seed=3)
    compiled = getattr(generation.generation_program, "_cache_size")  # noqa: B009 jit's type does not declare it
    before = compiled()
    answers = answer_ids(folder, replace(config, batch_size=2))
    assert compiled() == before + 1
    assert answers == answer_ids(folder, replace(config, batch_size=1))
    assert answers == answer_ids(folder, replace(config, batch_size=16))  # one batch of the three prompts


def test_a_pad_token_outside_the_embedding_changes_no_answer(folder):
    plain = answer_prompts(folder, PROMPTS, AnsweringConfig(max_new_tokens=6))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    assert data.load_tokenizer(folder, vocab_size=257).pad_token_id == 257
    assert answer_prompts(folder, PROMPTS, AnsweringConfig(max_new_tokens=6)) == plain
    with pytest.raises(InputError, match=r"prompt 0 .*contains '\[PAD\]'"):
        answer_prompts(folder, [Prompt(prompt="[PAD]", columns={})], GREEDY)
