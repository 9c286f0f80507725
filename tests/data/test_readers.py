"""Readers of the data sets' forms: what each row means, and which rows do not fit, with place and reason."""

import gzip
import json
import logging
import re

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrl_lm.data import (
    BestOfK,
    LanguageModeling,
    Preference,
    PromptCompletion,
    Rating,
    UnpairedPreference,
    read_best_of_k,
    read_language_modeling,
    read_preferences,
    read_prompt_completions,
    read_ratings,
    read_unpaired_preferences,
)
from jaxrl_lm.errors import InputError
from tests.data.files import BLUE, GREEN, SKY, WRITERS, as_jsonl, one, refused, write

MARKUP = 'plain <b>&amp;</b>\x00\x1b[31m\r\n\u2028 "x" 🐭'


PLAIN = {
    read_language_modeling: ({"text": MARKUP}, LanguageModeling(text=MARKUP)),
    read_prompt_completions: (
        {"prompt": "Q", "completion": MARKUP},
        PromptCompletion(prompt="Q", completion=MARKUP),
    ),
    read_preferences: (
        {"prompt": "Q", "chosen": MARKUP, "rejected": " no"},
        Preference(prompt="Q", chosen=MARKUP, rejected=" no"),
    ),
    read_unpaired_preferences: (
        {"prompt": "", "completion": MARKUP, "label": "true"},
        UnpairedPreference(prompt="", completion=MARKUP, label=True),
    ),
    read_best_of_k: (
        {"query": "Q", "sample0": "a", "sample1": MARKUP, "sample2": "c", "best": "1"},
        BestOfK(prompt="Q", completions=("a", MARKUP, "c"), best=1),
    ),
    read_ratings: ({"id": "7", "text": MARKUP, "rating": "-1.5"}, Rating(text=MARKUP, rating=-1.5)),
}


@pytest.mark.parametrize("reader", PLAIN)
@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_plain_rows_of_every_form_are_read_from_every_kind_of_file(tmp_path, reader, form, ending):
    row, record = PLAIN[reader]
    content = WRITERS[form]([row, row])
    path = tmp_path / f"rows.{form}{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    assert reader(path) == [record, record]


CONVERSATIONS = {
    read_language_modeling: ({"messages": [SKY, BLUE]}, LanguageModeling(text=[SKY, BLUE])),
    read_prompt_completions: (
        {"prompt": [SKY], "completion": [BLUE]},
        PromptCompletion(prompt=[SKY], completion=[BLUE]),
    ),
    read_preferences: (
        {"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]},
        Preference(prompt=[SKY], chosen=[BLUE], rejected=[GREEN]),
    ),
    read_unpaired_preferences: (
        {"prompt": [SKY], "completion": [BLUE], "label": False},
        UnpairedPreference(prompt=[SKY], completion=[BLUE], label=False),
    ),
    read_best_of_k: (
        {"query": [SKY], "sample0": [BLUE], "sample1": [GREEN], "best": 0},
        BestOfK(prompt=[SKY], completions=([BLUE], [GREEN]), best=0),
    ),
}


@pytest.mark.parametrize("reader", CONVERSATIONS)
@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_conversations_of_every_form_are_read(tmp_path, reader, form):
    row, record = CONVERSATIONS[reader]
    assert reader(write(tmp_path, f"rows.{form}", WRITERS[form]([row]))) == [record]


def test_columns_that_are_null_are_as_good_as_absent(tmp_path):
    rows = [{"text": "a", "messages": None}, {"text": None, "messages": [SKY, BLUE]}]
    source = write(tmp_path, "rows.parquet", WRITERS["parquet"](rows))
    assert [record.text for record in read_language_modeling(source)] == ["a", [SKY, BLUE]]


def test_plain_text_is_one_text_a_line_for_language_modeling_and_refused_elsewhere(tmp_path):
    source = write(tmp_path, "poem.txt", "first \n\nsecond")
    assert [record.text for record in read_language_modeling(source)] == ["first ", "second"]
    with pytest.raises(InputError, match=r"plain text has no columns; give a file that ends in one of \.jsonl"):
        read_preferences(source)


def test_a_data_set_of_the_hub_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mice"
    folder.mkdir()
    row, record = CONVERSATIONS[read_unpaired_preferences]
    write(folder, "train.jsonl", as_jsonl([row]))
    assert read_unpaired_preferences(f"hub:{folder}:train") == [record]


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        *[(label, True) for label in (True, 1, 1.0, "true", "True", "1", "good", " GOOD ")],
        *[(label, False) for label in (False, 0, 0.0, "false", "FALSE", "0", "bad", "Bad")],
    ],
)
def test_labels_and_their_forms(tmp_path, label, wanted):
    (record,) = one(read_unpaired_preferences, tmp_path, {"prompt": "Q", "completion": "a", "label": label})
    assert record.label is wanted


@pytest.mark.parametrize("label", [2, -1, 0.5, "yes", "", "thumbs up", [True], {}])
def test_other_labels_are_refused(tmp_path, label):
    row = {"prompt": "Q", "completion": "a", "label": label}
    refused(read_unpaired_preferences, tmp_path, row, f"'label': {label!r} is not a label; write true or false")
    refused(read_unpaired_preferences, tmp_path, {**row, "label": None}, "there is no 'label'")


@pytest.mark.parametrize(
    ("reader", "row", "part"),
    [
        (read_language_modeling, {"text": ""}, "'text': it is empty"),
        (read_language_modeling, {"texts": "a"}, "did you mean 'texts'?"),
        (read_prompt_completions, {"prompt": "Q", "completion": " "}, "'completion': it is empty"),
        (read_prompt_completions, {"completion": "a"}, "there is no 'prompt'"),
        (read_prompt_completions, {"prompt": "Q", "completion": [BLUE]}, "messages, but the prompt is text"),
        (read_ratings, {"text": "a", "rating": "high"}, "'rating': 'high' is not a finite number"),
        (read_ratings, {"text": "a", "rating": "nan"}, "'rating': 'nan' is not a finite number"),
        (read_ratings, {"text": "a", "rating": True}, "'rating': True is not a finite number"),
        (read_ratings, {"text": "a", "rating": 10**400}, "is not a finite number"),
        (read_ratings, {"text": [SKY], "rating": 1}, "'text': [{"),
        (read_ratings, {"text": " ", "rating": 1}, "'text': it is empty"),
    ],
)
def test_rows_of_other_forms_that_do_not_fit_are_named(tmp_path, reader, row, part):
    refused(reader, tmp_path, row, part)


def test_ratings_are_read_from_the_columns_named(tmp_path):
    row = {"Stars": 4, "Review": "fine"}
    assert one(read_ratings, tmp_path, row, text_column="Review", rating_column="Stars") == [
        Rating(text="fine", rating=4.0)
    ]
    refused(read_ratings, tmp_path, row, "there is no 'stars'; did you mean 'Stars'?",
            text_column="Review", rating_column="stars")  # fmt: skip


GOOD_LINE = '{"prompt": "Q", "completion": "a"}\n'


def test_one_percent_of_misfits_are_left_out_and_listed_with_their_lines(tmp_path, caplog):
    lines = [GOOD_LINE] * 200
    lines[4], lines[99] = '{"prompt": "Q", "completion"\n', '{"prompt": "Q"}\n'
    source = write(tmp_path, "rows.jsonl", "".join(lines))
    with caplog.at_level(logging.WARNING, "jaxrl_lm"):
        assert len(read_prompt_completions(source)) == 198
    (said,) = caplog.messages
    assert f"{source}: 2 of 200 rows do not fit and are left out" in said
    assert re.search(r"line 5: not valid JSON.*\n.*line 100: there is no 'completion'", said)


def test_more_than_one_percent_of_misfits_is_an_error_that_explains_the_first_ten(tmp_path):
    lines = [GOOD_LINE] * 1100
    for index in range(50, 1150, 100):
        lines[index] = "[]\n"
    source = write(tmp_path, "rows.jsonl", "".join(lines))
    assert len(read_prompt_completions(source)) == 1089
    lines[1] = "[]\n"
    with pytest.raises(InputError) as caught:
        read_prompt_completions(write(tmp_path, "rows.jsonl", "".join(lines)))
    said = str(caught.value)
    assert "12 of 1100 rows do not fit, more than 1%; correct or remove them:" in said
    assert said.count("is not an object") == 10
    assert "line 2: [] is not" in said
    assert said.endswith("and lines 951, 1051")


@pytest.mark.parametrize(("form", "kind"), [("jsonl", "line"), ("json", "item"), ("parquet", "row")])
def test_all_misfits_are_listed_and_those_behind_one_another_as_a_range(tmp_path, caplog, form, kind):
    good = json.loads(GOOD_LINE)
    rows = [good] * 2500
    for number in [*range(1, 11), 17, 21, *range(40, 53)]:
        rows[number - 1] = {**good, "completion": ""}
    assert len(read_prompt_completions(write(tmp_path, f"rows.{form}", WRITERS[form](rows)))) == 2475
    assert caplog.text.count("it is empty") == 10
    assert caplog.text.rstrip().endswith(f"\n  and {kind}s 17, 21, 40 to 52")
    rows[2:] = rows[2:52]
    with pytest.raises(InputError, match=rf"and {kind}s 17, 21, 40 to 52$"):
        read_prompt_completions(write(tmp_path, f"rows.{form}", WRITERS[form](rows)))
    with pytest.raises(InputError, match=rf"and {kind} 11$"):
        read_prompt_completions(write(tmp_path, f"rows.{form}", WRITERS[form]([rows[0]] * 11)))


@pytest.mark.parametrize(
    ("name", "broken", "part"),
    [
        ("rows.csv", "only one cell\n", "line 4: 1 cells, but the header has 2"),
        ("rows.tsv", "a\tb\tc\n", "line 4: 3 cells, but the header has 2"),
    ],
)
def test_a_short_or_long_row_of_a_table_is_a_misfit(tmp_path, caplog, name, broken, part):
    rows = WRITERS[name[-3:]]([{"prompt": "Q\nq", "completion": "a"}] * 100).decode().splitlines(keepends=True)
    source = write(tmp_path, name, "".join([*rows[:3], broken, *rows[3:]]))
    assert len(read_prompt_completions(source)) == 100
    assert part in caplog.text


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("place", [0, 50])
def test_a_line_that_is_not_utf_8_is_a_misfit(tmp_path, caplog, name, place):
    lines = [GOOD_LINE.encode()] * 200
    lines[place] = b'{"prompt": "na\xefve", "completion": "a"}\n'
    source = write(tmp_path, name, b"".join(lines))
    assert len(read_prompt_completions(source)) == 199
    assert f"line {place + 1}: not UTF-8" in caplog.text


def test_a_line_of_plain_text_that_is_not_utf_8_is_a_misfit(tmp_path, caplog):
    source = write(tmp_path, "poem.txt", b"fine\n" * 199 + b"na\xefve\n")
    assert len(read_language_modeling(source)) == 199
    assert "line 200: not UTF-8" in caplog.text


def test_items_of_a_json_list_that_are_no_objects_are_misfits(tmp_path, caplog):
    rows = [json.loads(GOOD_LINE)] * 100
    source = write(tmp_path, "rows.json", json.dumps([*rows, 7]))
    assert len(read_prompt_completions(source)) == 100
    assert "item 101: 7 is not an object" in caplog.text


def test_sources_without_rows_and_limits_below_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no rows"):
        read_preferences(write(tmp_path, "empty.jsonl", "\n"))
    with pytest.raises(InputError, match="limit is 0"):
        read_preferences("never opened", limit=0)
    with pytest.raises(InputError, match="does not exist"):
        read_preferences(tmp_path / "absent.jsonl")


def test_limit_reads_no_further(tmp_path):
    source = write(tmp_path, "rows.jsonl", GOOD_LINE * 2 + "not JSON\n")
    assert len(read_prompt_completions(source, limit=2)) == 2
    with pytest.raises(InputError, match="line 3"):
        read_prompt_completions(source, limit=3)


def test_a_limit_that_ends_the_read_leaves_the_share_of_misfits_open(tmp_path, caplog):
    source = write(tmp_path, "rows.jsonl", '{"prompt": "Q"}\n' + GOOD_LINE * 999)
    assert len(read_prompt_completions(source, limit=1)) == 1
    assert "1 of 2 rows do not fit and are left out:" in caplog.text
    assert "line 1: there is no 'completion'" in caplog.text
    refused(read_prompt_completions, tmp_path, {"prompt": "Q"}, limit=1)


def test_a_text_of_100_kilobytes_is_read_whole(tmp_path):
    long = "word " * 20_000
    row = {"prompt": "Q", "chosen": long, "rejected": long + "!"}
    assert one(read_preferences, tmp_path, row)[0].chosen == long


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text("a \n", max_size=3) | st.just([BLUE]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner),
    max_leaves=4,
)
COLUMNS = (
    "prompt", "completion", "label", "chosen", "rejected", "text", "messages", "rating",
    "query", "sample0", "sample1", "best", "info", "summaries", "choice",
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.dictionaries(st.sampled_from(COLUMNS), json_values), reader=st.sampled_from(list(PLAIN)))
def test_whatever_a_row_holds_it_is_a_record_or_an_input_error(tmp_path, row, reader):
    source = write(tmp_path, "row.jsonl", json.dumps(row))
    try:
        records, said = reader(source), ""
    except InputError as error:
        records, said = [], str(error)
    assert bool(records) != ("row.jsonl, line 1" in said)
    assert all(isinstance(record, type(PLAIN[reader][1])) for record in records)


def test_a_source_of_another_form_is_not_read_to_its_end(tmp_path):
    source = write(tmp_path, "rows.jsonl", GOOD_LINE * 900 + "{}\n" * 10_000)
    with pytest.raises(InputError, match="1000 of 1900 rows do not fit, more than 1%"):
        read_prompt_completions(source)
