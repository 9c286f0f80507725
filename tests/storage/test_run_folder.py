"""The run folder: created once, resumed with the same configuration, JSON lines that survive a kill."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import (
    RunFolder,
    append_jsonl,
    flatten_config,
    read_jsonl,
    truncate_jsonl,
    write_atomically,
)

CONFIG = {"seed": 0, "ppo": {"clip": 0.2, "num_updates": 10}, "layers": [64, 64], "note": None}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
json_records = st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5)


def test_create_writes_the_configuration_and_leaves_nothing_else(tmp_path):
    folder = RunFolder.create(tmp_path / "runs" / "a", CONFIG)
    assert [member.name for member in folder.path.iterdir()] == ["config.yaml"]
    assert yaml.safe_load(folder.config_file.read_text()) == CONFIG
    assert folder.read_config() == CONFIG


def test_create_takes_an_empty_folder_and_refuses_a_full_one_or_a_file(tmp_path):
    RunFolder.create(tmp_path, CONFIG)
    with pytest.raises(InputError, match="not empty: choose another --out, or --resume"):
        RunFolder.create(tmp_path, {"seed": 1})
    assert RunFolder(tmp_path).read_config() == CONFIG
    with pytest.raises(InputError, match="choose another --out"):
        RunFolder.create(tmp_path / "config.yaml", CONFIG)
    with pytest.raises(InputError, match="choose another --out"):
        RunFolder.create(tmp_path / "config.yaml" / "below", CONFIG)


def test_create_takes_a_folder_that_a_kill_left_with_an_unfinished_configuration_alone(tmp_path):
    (tmp_path / ".config.yaml.17.tmp").write_text("se")
    RunFolder.create(tmp_path, CONFIG)
    assert [member.name for member in tmp_path.iterdir()] == ["config.yaml"]
    other = tmp_path / "other"
    other.mkdir()
    (other / ".notes.txt.17.tmp").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        RunFolder.create(other, CONFIG)
    assert (other / ".notes.txt.17.tmp").read_text() == "mine"


def test_open_names_every_differing_field_with_both_values(tmp_path):
    RunFolder.create(tmp_path, CONFIG)
    other = {"seed": 7, "ppo": {"clip": 0.1, "num_updates": 10}, "layers": [64, 64], "added": "x"}
    with pytest.raises(InputError) as caught:
        RunFolder.open(tmp_path, other)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  seed: 0 in the run, 7 now",
        "  ppo.clip: 0.2 in the run, 0.1 now",
        "  note: None in the run, not set now",
        "  added: not set in the run, 'x' now",
    ]
    assert RunFolder(tmp_path).read_config() == CONFIG


@pytest.mark.parametrize("ignore", [{"ppo.num_updates"}, {"ppo"}])
def test_an_exempt_field_may_differ_and_is_then_recorded(tmp_path, ignore):
    RunFolder.create(tmp_path, CONFIG)
    longer = {**CONFIG, "ppo": {"clip": 0.2, "num_updates": 20}}
    with pytest.raises(InputError, match=r"ppo\.num_updates: 10 in the run, 20 now"):
        RunFolder.open(tmp_path, longer, ignore=frozenset({"num_updates", "ppo.num"}))
    assert RunFolder.open(tmp_path, longer, ignore=frozenset(ignore)).read_config() == longer


def test_equal_configurations_open_whatever_their_order_or_spelling(tmp_path):
    RunFolder.create(tmp_path, {"a": (1, 2), "b": math.nan, "c": 1e-5, "d": 1, "e": {}})
    RunFolder.open(tmp_path, {"e": {}, "d": 1.0, "c": 0.00001, "b": math.nan, "a": [1, 2]})


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x93", b"a: [1", b"- 1\n- 2\n", b"", b"!!python/name:os.system x"])
def test_an_unreadable_configuration_is_an_input_error_that_names_the_file(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml"):
        RunFolder.open(tmp_path, CONFIG)


def test_open_without_a_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        RunFolder.open(tmp_path / "nowhere", CONFIG)


def test_flatten_config_names_nested_fields_by_their_path():
    assert flatten_config({"a": {"b": {"c": 1}, "d": []}, "e": {}}) == {"a.b.c": 1, "a.d": [], "e": {}}


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=40)
@given(records=json_records, more=json_records)
def test_jsonl_reads_back_what_was_appended(tmp_path_factory, records, more):
    path = tmp_path_factory.mktemp("jsonl") / "file.jsonl"
    append_jsonl(path, records)
    append_jsonl(path, more)
    assert read_jsonl(path) == records + more


@settings(max_examples=40)
@given(records=json_records, cut=st.integers(min_value=0, max_value=60))
def test_jsonl_cut_anywhere_keeps_the_whole_lines_and_takes_more(tmp_path_factory, records, cut):
    path = tmp_path_factory.mktemp("jsonl") / "file.jsonl"
    append_jsonl(path, records)
    content = path.read_bytes()[: -cut or None]
    path.write_bytes(content)
    # A record counts as soon as its closing brace is there, even if its newline is not.
    lengths = [len(json.dumps(record)) for record in records]
    ends = [sum(lengths[: i + 1]) + i for i in range(len(lengths))]
    whole = [record for record, end in zip(records, ends, strict=True) if end <= len(content)]
    assert read_jsonl(path) == whole
    append_jsonl(path, [{"step": 1}])
    assert read_jsonl(path) == [*whole, {"step": 1}]


@pytest.mark.parametrize("bad", ["{", "3", "", "\x00\x00", '{"a": 1} x'])
def test_a_bad_line_elsewhere_is_an_error_with_its_number(tmp_path, bad):
    path = tmp_path / "file.jsonl"
    path.write_text(f'{{"step": 0}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(InputError, match="line 2"):
        read_jsonl(path)


def test_floats_that_are_not_finite_become_null_at_any_depth(tmp_path):
    path = tmp_path / "file.jsonl"
    append_jsonl(path, [{"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5}])
    assert json.loads(path.read_text()) == {"a": None, "b": [None, {"c": None}], "d": 1.5}


def test_truncate_drops_the_given_step_and_later_ones_and_the_cut_line(tmp_path):
    path = tmp_path / "file.jsonl"
    append_jsonl(path, [{"step": step, "x": step * 2} for step in (0, 1, 2, 3, 1)])
    with path.open("a") as file:
        file.write('{"step": 1, "x"')
    truncate_jsonl(path, 2)
    assert path.read_text() == '{"step": 0, "x": 0}\n{"step": 1, "x": 2}\n{"step": 1, "x": 2}\n'
    truncate_jsonl(path, 0)
    assert path.read_text() == ""
    truncate_jsonl(tmp_path / "missing.jsonl", 0)
    assert not (tmp_path / "missing.jsonl").exists()


@pytest.mark.parametrize("step", ['"3"', "true", "1.5", "null"])
def test_truncate_refuses_a_record_without_a_step_and_changes_nothing(tmp_path, step):
    path = tmp_path / "file.jsonl"
    content = f'{{"step": 0}}\n{{"step": {step}}}\n'
    path.write_text(content)
    with pytest.raises(InputError, match="line 2: step is"):
        truncate_jsonl(path, 0)
    assert path.read_text() == content


def test_the_members_lie_where_the_documentation_says():
    folder = RunFolder(Path("runs/x"))
    members = {
        folder.config_file: "config.yaml",
        folder.metrics_file: "metrics.jsonl",
        folder.samples_file: "samples.jsonl",
        folder.report_file: "report.html",
        folder.tensorboard_folder: "tensorboard",
        folder.checkpoints_folder: "checkpoints",
        folder.plots_folder: "plots",
        folder.model_folder: "model",
    }
    assert all(path == Path("runs/x") / name for path, name in members.items())
