"""Reading prompts: all formats say the same, and every broken source is named with its place and a remedy."""

import contextlib
import gzip
import json
import re
import sys

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrl_lm.data import Prompt, read_prompts
from jaxrl_lm.errors import InputError
from tests.data.files import WRITERS, as_jsonl, as_parquet, write

ROWS = [
    {"prompt": 'She said "go,\nnow"', "answer": "left\tright"},
    {"prompt": "Où est-il? \u2028 迷路 🐭", "answer": ""},
    {"prompt": "  spaces stay  ", "answer": "x"},
]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def refused(source, *parts, **options):
    with pytest.raises(InputError) as caught:
        read_prompts(source, **options)
    for part in (source, *parts):
        assert part in str(caught.value)


def as_prompts(rows):
    return [Prompt(prompt=row["prompt"], columns={"answer": row["answer"]}) for row in rows]


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_every_format_gives_the_same_prompts_and_columns(tmp_path, form, is_gzipped):
    content = WRITERS[form](ROWS)
    if is_gzipped:
        source = write(tmp_path, f"rows.{form}.gz", gzip.compress(content))
    else:
        source = write(tmp_path, f"ROWS.{form.upper()}", content)
    assert read_prompts(source) == as_prompts(ROWS)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
rows_of_text = st.lists(
    st.fixed_dictionaries({"prompt": text.filter(str.strip), "answer": text}), min_size=1, max_size=5
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of_text)
def test_random_text_is_the_same_in_every_format(tmp_path, rows):
    for form, writer in WRITERS.items():
        assert read_prompts(write(tmp_path, f"rows.{form}", writer(rows))) == as_prompts(rows), form


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), suffix=st.sampled_from([*WRITERS, "txt", "csv.gz", "parquet.gz"]))
def test_random_bytes_give_prompts_or_an_input_error(tmp_path, content, suffix):
    source = write(tmp_path, f"noise.{suffix}", content)
    with contextlib.suppress(InputError):
        assert all(prompt.prompt.strip() for prompt in read_prompts(source))


def test_plain_text_has_one_prompt_a_line_and_skips_blank_lines(tmp_path):
    source = write(tmp_path, "prompts.txt", b"\xef\xbb\xbffirst \r\n\n   \r\nsecond \xe2\x80\xa8 half\nlast")
    assert [one.prompt for one in read_prompts(source)] == ["first ", "second \u2028 half", "last"]
    assert all(one.columns == {} for one in read_prompts(source, column="anything"))


def test_blank_lines_of_jsonl_and_csv_are_skipped(tmp_path):
    assert len(read_prompts(write(tmp_path, "a.jsonl", '\n{"prompt": "a"}\n \n{"prompt": "b"}\n\n'))) == 2
    assert len(read_prompts(write(tmp_path, "a.csv", "\n\nprompt\n\na\n\nb\n"))) == 2


def test_a_json_file_may_hold_one_object_a_line(tmp_path):
    source = write(tmp_path, "a.json", '\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [one.prompt for one in read_prompts(source)] == ["a", "b"]


def test_limit_reads_no_further(tmp_path):
    source = write(tmp_path, "a.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\nnot JSON\n')
    assert [one.prompt for one in read_prompts(source, limit=2)] == ["a", "b"]
    refused(source, "line 3", limit=3)
    with pytest.raises(InputError, match="limit is 0"):
        read_prompts(source, limit=0)


def test_one_percent_of_prompts_that_do_not_fit_are_left_out_and_listed(tmp_path, caplog):
    lines = [json.dumps({"prompt": f"number {number}"}) + "\n" for number in range(300)]
    lines[4], lines[70], lines[99] = '{"prompt": " "}\n', "not JSON\n", '{"promt": "a"}\n'
    source = write(tmp_path, "a.jsonl", "".join(lines))
    kept = [Prompt(prompt=f"number {number}", columns={}) for number in range(300) if number not in (4, 70, 99)]
    assert read_prompts(source) == kept
    assert f"{source}: 3 of 300 rows do not fit and are left out:" in caplog.text
    for said in (
        "line 5, column 'prompt': the prompt is blank",
        "line 71: not valid JSON",
        "line 100: there is no column",
    ):
        assert said in caplog.text
    assert read_prompts(source, limit=6) == kept[:6]
    write(tmp_path, "a.jsonl", "".join([*lines, "[]\n"]))
    refused(source, "4 of 301 rows do not fit, more than 1%", "line 301: [] is not an object")


def test_another_column_can_hold_the_prompt(tmp_path):
    source = write(tmp_path, "a.csv", "question,prompt\nwhy?,unused\n")
    assert read_prompts(source, column="question") == [Prompt(prompt="why?", columns={"prompt": "unused"})]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_conversations_are_read_as_messages(tmp_path, form):
    named = [{"role": "user", "content": "Hi", "name": "Ann"}]
    source = write(tmp_path, f"a.{form}", WRITERS[form]([{"prompt": MESSAGES}, {"prompt": named}]))
    assert [one.prompt for one in read_prompts(source)] == [MESSAGES, named]


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ([], "list of messages is empty"),
        (["Hello"], "message 0: 'Hello' is not an object"),
        ([*MESSAGES, {"content": "Hello"}], "message 2: its 'role' is missing"),
        ([{"role": "user", "content": None}], "its 'content' is missing or not text"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "its 'tool_calls' is not a list of objects"),
        ([{"role": "user", "content": " "}], "blank"),
        (" \t", "blank"),
        (7, "7 is not text"),
        (None, "None is not text"),
        ({"role": "user"}, "is not text"),
        ("half \ud83d", "character 5 is half of a surrogate pair"),
    ],
)
def test_a_prompt_that_is_no_prompt_is_named_with_line_and_column(tmp_path, prompt, part):
    source = write(tmp_path, "a.jsonl", '{"prompt": "fine"}\n\n' + json.dumps({"prompt": prompt}))
    refused(source, "line 3", "column 'prompt'", part)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"promt": "b"}', ["line 2", "no column 'prompt'", "mean 'promt'?"]),
        ("a.json", '[{"prompt": "a"}, {"x": 1}]', ["item 2", "no column 'prompt'. The columns are: 'x'"]),
        ("a.csv", "promt,x\na,b\n", ["line 1", "mean 'promt'?", "'promt', 'x'", "`column`"]),
        ("a.csv", "promt\n", ["line 1", "no column 'prompt'"]),
        ("a.parquet", as_parquet([{"promts": "a"}]), ["no column 'prompt'", "mean 'promts'?"]),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', ["line 2", "not valid JSON"]),
        ("a.jsonl", '{"prompt": "a"}\n["b"]\n', ["line 2", "['b'] is not an object", "one object a line"]),
        ("a.jsonl", "[" * 100_000, ["line 1", "unreadable JSON"]),
        ("a.jsonl", '{"prompt": ' + "9" * 5000 + "}", ["line 1", "unreadable JSON"]),
        ("a.json", '[{"prompt": "a"},\n\n{"prompt" "b"}]', ["line 3", "not valid JSON"]),
        ("a.json", '{"prompt": "a"}\n{"prompt" "b"}', ["line 2", "not valid JSON"]),
        ("a.json", '{\n"prompt": "a"}\n{"prompt": "b"}', ["line 3", ".jsonl"]),
        ("a.json", '{"prompt": "a"}', ["not a list", "list of objects"]),
        ("a.json", '["a"]', ["item 1", "'a' is not an object"]),
        ("a.csv", 'prompt,x\n"a\nb",1\nc\n', ["line 4", "1 cells, but the header has 2", "quotes"]),
        ("a.csv", "prompt,x\na,1,2\n", ["line 2", "3 cells, but the header has 2"]),
        ("a.csv", 'prompt,x\na,1\n"never closed,2\nb,3\n', ["line 3", "close every quoted cell"]),
        ("a.csv", "prompt,prompt\na,b\n", ["line 1", "'prompt' occurs twice"]),
        ("a.csv", 'prompt\n""\n', ["line 2", "blank"]),
        ("a.txt", b"fine\nna\xefve\n", ["line 2", "UTF-8"]),
        ("a.csv", "prompt\nnaïve\n".encode("cp1252"), ["line 2", "not UTF-8", "ISO-8859-1", "save it as UTF-8"]),
        ("a.csv", "prompt\n“naïve”\n".encode("cp1252"), ["line 2", "WINDOWS-1252", "iconv"]),
        ("a.csv", "prompt\nnaïve\n".encode("utf-16")[:-1], ["starts as UTF-16-LE", "save it as UTF-8"]),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', ["line 2", "UTF-8"]),
        ("a.json", b'[{"prompt":\n"\xff"}]', ["line 2", "UTF-8"]),
        ("a.txt.gz", b"plain text", ["gzip"]),
        ("a.txt.gz", gzip.compress(b"cut short" * 99, mtime=0)[:-12], ["gzip"]),
        ("a.parquet", b"PAR1 and then noise PAR1", ["not a whole parquet file"]),
        ("a.parquet", as_parquet(ROWS)[:-9], ["not a whole parquet file"]),
        *[(f"a.{suffix}", b"", ["no rows"]) for suffix in (*WRITERS, "txt", "txt.gz")],
        ("a.json", "[]", ["no rows"]),
        ("a.csv", "prompt\n", ["no rows"]),
        ("a.txt", "\n \n", ["no rows"]),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_place_and_remedy(tmp_path, name, content, parts):
    refused(write(tmp_path, name, content), *parts)


def test_a_long_cell_of_csv_is_read_and_one_past_the_limit_is_named(tmp_path):
    long = "word " * 100_000
    source = write(tmp_path, "a.csv", f"prompt\n{long}\n")
    assert read_prompts(source)[0].prompt == long
    refused(write(tmp_path, "b.csv", "prompt\n" + "x" * (2**24 + 1)), "line 2", "field larger than")


def test_a_source_that_is_not_a_file_is_named(tmp_path):
    refused(str(tmp_path / "absent.jsonl"), "does not exist", "hub:")
    refused(str(tmp_path), "is a folder")
    refused("x" * 5000, "cannot be read")


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    source = write(tmp_path, "a.parquet", as_parquet(ROWS))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(source, "pyarrow", "pip install 'jaxrl-lm[data]'")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hub:some/name", "datasets", "pip install 'jaxrl-lm[data]'")


def test_a_data_set_of_the_hub_is_read_by_name_and_split(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mice"
    folder.mkdir()
    write(folder, "train.jsonl", as_jsonl(ROWS))
    write(folder, "test.jsonl", as_jsonl(ROWS[1:2]))
    assert read_prompts(f"hub:{folder}") == as_prompts(ROWS)
    assert read_prompts(f"hub:{folder}:test") == as_prompts(ROWS[1:2])
    assert read_prompts(f"hub:{folder}:train[1:2]") == as_prompts(ROWS[1:2])
    refused(f"hub:{folder}:dev", "cannot be loaded", "split")
    refused(f"hub:{folder}", "row 1", "no column 'question'", column="question")


def test_a_configuration_of_a_data_set_of_the_hub_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mice"
    folder.mkdir()
    files = [("big", "train", ROWS), ("small", "train", ROWS[:1]), ("small", "test", ROWS[1:2])]
    for config, split, rows in files:
        write(folder, f"{config}-{split}.jsonl", as_jsonl(rows))
    described = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - {{split: {part}, path: {name}-{part}.jsonl}}\n" for name, part, _ in files if name == config)
        for config in ("big", "small")
    )
    write(folder, "README.md", f"---\nconfigs:\n{described}---\n")
    assert read_prompts(f"hub:{folder}:big:train") == as_prompts(ROWS)
    assert read_prompts(f"hub:{folder}:big:train[1:2]") == as_prompts(ROWS[1:2])
    assert read_prompts(f"hub:{folder}:small:test") == as_prompts(ROWS[1:2])
    assert read_prompts(f"hub:{folder}:small:") == as_prompts(ROWS[:1])
    refused(f"hub:{folder}:train", "cannot be loaded", "hub:NAME:CONFIG:SPLIT")


@pytest.mark.parametrize("source", ["hub:", "hub::train", "hub:a:b:c:d"])
def test_hub_without_a_name_or_with_too_many_is_refused(source):
    with pytest.raises(InputError, match=re.escape("write hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")):
        read_prompts(source)
