"""Malformed files that once ended in a traceback, took minutes, or filled the memory: each gives one clear error."""

import gzip
import json
import time

import pytest

from jaxrl_lm import data, storage
from jaxrl_lm.cli.config_file import expand_config_file
from jaxrl_lm.errors import InputError
from jaxrl_lm.guarded import limits
from jaxrl_lm.guarded import text as guarded_text
from jaxrl_lm.models import from_pretrained
from tests.fuzz.mutations import DEEP
from tests.fuzz.targets import make_targets

DIGITS = "9" * 401


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return make_targets(tmp_path_factory.mktemp("faults"))


def refused(target, content, *words):
    """The reader refuses the file with this content in one message that holds the words, within seconds."""
    path = target.folder / target.file
    good = path.read_bytes()
    began = time.monotonic()
    try:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError) as caught:
            target.read(path)
    finally:
        path.write_bytes(good)
    assert time.monotonic() - began < 10
    for word in words:
        assert word in str(caught.value)


def edited(target, **changes):
    path = target.folder / target.file
    return json.dumps(json.loads(path.read_text()) | changes)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                                  "reward_scale.json", "index.json", "run sections.json", "run config.yaml",
                                  "--config", "alpaca.json"])  # fmt: skip
def test_nesting_of_900_levels(targets, name):
    content = DEEP if name == "alpaca.json" else '{"a": ' + DEEP + "}"
    refused(targets[name], content, "nested deeper than 100 levels")


def test_a_name_of_a_million_letters_is_shortened_in_the_message(targets):
    target = targets["index.json"]
    index = json.loads((target.folder / target.file).read_text())
    index["weight_map"]["x" * 10**6] = next(iter(index["weight_map"].values()))
    refused(target, json.dumps(index), f"the shards lack {'x' * 200};")


def test_numbers_of_too_many_digits_in_the_files_of_a_checkpoint(targets):
    refused(targets["run checkpoints/1/_CHECKPOINT_METADATA"], f'{{"a": {"9" * 5000}}}', "has damaged metadata")


def test_nesting_in_the_files_of_a_checkpoint(targets):
    names = [name for name in targets if name.startswith("run checkpoints/") and "METADATA" in name]
    assert len(names) >= 2
    description = f'{{"leaves": {DEEP}, "meta": 1, "checksum": 1}}'
    refused(targets["run checkpoints/1/description/metadata"], description, "is damaged")
    refused(targets["run checkpoints/1/arrays/_METADATA"], DEEP, "is damaged", "delete that folder")


@pytest.mark.parametrize("field", ["n_embd", "n_layer", "n_head", "n_positions", "vocab_size", "layer_norm_epsilon",
                                   "activation_function", "tie_word_embeddings", "initializer_range"])  # fmt: skip
@pytest.mark.parametrize("value", [[1], {"a": 1}, int(DIGITS)], ids=["list", "object", "digits"])
def test_config_fields_of_another_kind(targets, field, value):
    refused(targets["config.json"], edited(targets["config.json"], **{field: value}), "config.json")


@pytest.mark.parametrize("field", ["n_embd", "n_layer", "vocab_size", "layer_norm_epsilon", "activation_function"])
def test_true_where_a_number_or_text_belongs(targets, field):
    refused(targets["config.json"], edited(targets["config.json"], **{field: True}), "config.json")


def test_a_hundred_million_labels(targets):
    refused(targets["config.json"], edited(targets["config.json"], num_labels=100_000_000), "num_labels=100000000")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAA=="}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                            "pair": [], "special_tokens": {}}},
    ],
    ids=["charsmap", "charsmap_when_used", "fixed_length", "template"],
)  # fmt: skip
def test_tokenizers_that_panic_in_rust(targets, changes, capfd):
    refused(
        targets["tokenizer.json"], edited(targets["tokenizer.json"], **changes), "no tokenizer could be read", "Panic"
    )
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
    ids=["loops", "macros"],
)
def test_chat_templates_that_never_end(targets, template, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TEMPLATE_SECONDS", 0.2)
    target = targets["tokenizer_config.json"]
    refused(target, edited(target, chat_template=template), "chat template fails", "still not done after 0.2 seconds")


@pytest.mark.parametrize("value", ["&a {x: *a}", "&a [*a]"])
def test_yaml_within_itself(targets, value):
    for name in ("--config", "run config.yaml"):
        refused(targets[name], f"seed: {value}", "or cyclic")


def test_sexagesimal_yaml_is_text(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("out: 1:30\nlearning_rate: 1e-4\nname: 2026-99-99\n")
    assert expand_config_file([f"--config={file}"]) == [
        *("--out", "1:30", "--learning-rate", "0.0001", "--name", "2026-99-99")
    ]
    assert storage.RunFolder.create(tmp_path / "run", {"out": "1:30"}).read_config() == {"out": "1:30"}


def test_a_gzip_of_one_endless_line(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded_text, "MAX_LINE_BYTES", 10**6)
    for name in ("a.jsonl.gz", "a.csv.gz", "a.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"x" * 10**7))
        with pytest.raises(InputError, match="line 1: longer than 1,000,000 bytes"):
            data.read_language_modeling(tmp_path / name)


def test_lines_of_metrics_with_numbers_that_no_curve_can_hold(targets):
    for line in (f'{{"step": 0, "a": {DIGITS}}}', f'{{"step": {DIGITS}, "a": 1}}', '{"step": true, "a": 1}'):
        refused(targets["run metrics.jsonl"], line + "\n", "line 1")
    for line in (
        '{"num_steps": 1, "a": [1]}\n{"num_steps": 2, "a": [1, 2]}',
        f'{{"num_steps": {DIGITS}, "a": [1]}}',
        f'{{"num_steps": 1, "a": [{DIGITS}]}}',
    ):
        refused(targets["run seeds.jsonl"], line + "\n", "line")
    good = {"step": 0, "index": 0, "prompt": "p", "completion": "c", "phase": "after"}
    for change in ({"reward": int(DIGITS)}, {"step": 2**63}, {"prompt": ["p"]}, {"phase": "x" * 5000}):
        refused(targets["run samples.jsonl"], json.dumps(good | change) + "\n", "line 1")


@pytest.mark.parametrize(
    "changes",
    [
        {"strips": [{"label": "x", "pieces": ["a"], "values": []}]},
        {"rows": [["1", "2"]]},
        {"rows": [[1]]},
        {"title": None},
        {"picture": "x" * 5000},
        {"picture": ""},
        {"note": "\ud83d"},
        {"extra": 1},
    ],
)
def test_sections_of_another_kind(targets, changes):
    target = targets["run sections.json"]
    (section,) = json.loads((target.folder / target.file).read_text())
    refused(target, json.dumps([section | changes]), "sections.json")
    refused(target, json.dumps([changes]), "sections.json")


def test_scales_of_another_kind(targets):
    for changes in ({"gain": int(DIGITS)}, {"gain": [1]}, {"max_tokens": 10**30}, {"max_tokens": True}, {"x": 1}):
        refused(targets["reward_scale.json"], edited(targets["reward_scale.json"], **changes), "save the reward model")


def test_every_seed_of_these_is_read_when_it_is_good(targets):
    from_pretrained(targets["config.json"].folder)
    for name in ("tokenizer.json", "run sections.json", "run metrics.jsonl", "reward_scale.json"):
        target = targets[name]
        target.read(target.folder / target.file)
