"""Tables as spreadsheets and pandas write them."""

import datetime
import io

import pyarrow
import pyarrow.parquet
import pytest

from jaxrl_lm.data import (
    BestOfK,
    Prompt,
    PromptCompletion,
    read_best_of_k,
    read_prompt_completions,
    read_prompts,
    read_ratings,
)
from jaxrl_lm.errors import InputError
from tests.data.files import as_parquet, one, write

PAIRS = [PromptCompletion(prompt="Hi, you", completion="Yes; no"), PromptCompletion(prompt="b", completion="c\td")]


def quoted(rows, separator):
    return "".join(separator.join(f'"{cell}"' for cell in row) + "\r\n" for row in rows)


CELLS = [["prompt", "completion"], ["Hi, you", "Yes; no"], ["b", "c\td"]]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_separator_is_found_in_the_header(tmp_path, suffix, separator, encoding):
    text = separator.join(CELLS[0]) + "\r\n" + quoted(CELLS[1:], separator)
    assert read_prompt_completions(write(tmp_path, f"a.{suffix}", text.encode(encoding))) == PAIRS


def test_the_usual_separator_wins_and_quotes_hide_others(tmp_path):
    assert read_prompts(write(tmp_path, "a.csv", "prompt,a;b;c\nx,1\n"))[0].columns == {"a;b;c": "1"}
    assert read_prompts(write(tmp_path, "a.tsv", "prompt\ta, b, c\nx\t1\n"))[0].columns == {"a, b, c": "1"}
    assert read_prompts(write(tmp_path, "a.csv", 'prompt;"a,b,c"\nx;1\n'))[0].columns == {"a,b,c": "1"}
    assert read_prompts(write(tmp_path, "a.csv", "prompt\na;b\n"))[0].prompt == "a;b"
    assert read_prompts(write(tmp_path, "a.csv", "\n\nprompt;x\n\na,b;1\n")) == [
        Prompt(prompt="a,b", columns={"x": "1"})
    ]


def test_excel_may_name_the_separator(tmp_path):
    source = write(tmp_path, "a.csv", "sep=;\r\nprompt;x\r\na,b;1\r\nlonely\r\n" + "a;2\r\n" * 200)
    assert read_prompts(source)[0] == Prompt(prompt="a,b", columns={"x": "1"})
    with pytest.raises(InputError, match="line 3: 1 cells, but the header has 2"):
        read_prompts(write(tmp_path, "a.csv", "sep=;\nprompt;x\nlonely\n"))


@pytest.mark.parametrize("header", [" Prompt ,COMPLETION", "PROMPT, completion", "Prompt\t,Completion"])
def test_headers_may_have_spaces_and_capitals(tmp_path, header):
    assert read_prompt_completions(write(tmp_path, "a.csv", header + '\n"Hi, you",Yes; no\nb,c\td\n')) == PAIRS


def test_names_of_other_columns_lose_only_their_spaces(tmp_path):
    source = write(tmp_path, "a.csv", "Prompt, My Column ,LABEL\nx,1,2\n")
    assert read_prompts(source) == [Prompt(prompt="x", columns={"My Column": "1", "label": "2"})]
    source = write(tmp_path, "a.csv", " question ,x\nwhy?,1\n")
    assert read_prompts(source, column="Question") == [Prompt(prompt="why?", columns={"x": "1"})]
    source = write(tmp_path, "a.csv", "Prompt,prompt\nx,y\n")
    assert read_prompts(source) == [Prompt(prompt="y", columns={"Prompt": "x"})]


def test_json_and_parquet_have_such_names_too(tmp_path):
    row = {"Query": "q", "Sample0": "a", "SAMPLE1": "b", " best ": 1}
    expected = [BestOfK(prompt="q", completions=("a", "b"), best=1)]
    assert one(read_best_of_k, tmp_path, row) == expected
    assert read_best_of_k(write(tmp_path, "a.parquet", as_parquet([row]))) == expected
    ratings = read_ratings(write(tmp_path, "a.csv", "Text;Rating\nx;1.5\n"))
    assert (ratings[0].text, ratings[0].rating) == ("x", 1.5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", ",prompt,x\n0,a,1\n"),
        ("a.csv", "Unnamed: 0.1,Unnamed: 0,prompt,x\n0,0,a,1\n"),
        ("a.csv", "prompt,x,,\na,1,,\n"),  # columns that a spreadsheet has emptied
        ("a.jsonl", '{"Unnamed: 0": 0, "prompt": "a", "x": "1"}\n'),
        ("a.parquet", as_parquet([{"prompt": "a", "x": "1", "__index_level_0__": 0}])),
    ],
)
def test_pandas_index_and_columns_without_a_name_are_left_out(tmp_path, name, content):
    assert read_prompts(write(tmp_path, name, content)) == [Prompt(prompt="a", columns={"x": "1"})]


def test_a_column_that_is_wanted_is_never_left_out(tmp_path):
    source = write(tmp_path, "a.csv", "Unnamed: 0,x\na,1\n")
    assert read_prompts(source, column="Unnamed: 0") == [Prompt(prompt="a", columns={"x": "1"})]


def test_a_header_of_100_000_columns_takes_no_time(tmp_path):
    names = ",".join(f"c{place}" for place in range(100_000))
    source = write(tmp_path, "a.csv", f"{names}\n")
    with pytest.raises(InputError) as caught:
        read_prompts(source)
    assert "'c0', 'c1'" in str(caught.value)
    assert "and 99980 more" in str(caught.value)
    wide = write(tmp_path, "b.csv", f"prompt,{names}\na,{','.join(['1'] * 100_000)}\n")
    assert len(read_prompts(wide)[0].columns) == 100_000
    with pytest.raises(InputError, match="'c5' occurs twice"):
        read_prompts(write(tmp_path, "c.csv", f"prompt,{names},c5\n"))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pyarrow.duration("s"), 2**62),
        (pyarrow.timestamp("ms"), 2**62),
        (pyarrow.timestamp("us", tz="Mars/Phobos"), 1),
        (pyarrow.date32(), 2**30),
    ],
)
def test_times_that_python_has_no_type_for_are_named_with_their_column(tmp_path, kind, value):
    file = io.BytesIO()
    column = pyarrow.array([value], pyarrow.int32() if kind == pyarrow.date32() else pyarrow.int64()).cast(kind)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "when": column}), file)
    with pytest.raises(InputError, match=r"the column 'when', of type .* cannot be read .*; leave it out"):
        read_prompts(write(tmp_path, "a.parquet", file.getvalue()))


def test_durations_are_read(tmp_path):
    file = io.BytesIO()
    seconds = pyarrow.array([datetime.timedelta(seconds=3)], pyarrow.duration("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "took": seconds}), file)
    (prompt,) = read_prompts(write(tmp_path, "a.parquet", file.getvalue()))
    assert prompt.columns["took"].total_seconds() == 3
