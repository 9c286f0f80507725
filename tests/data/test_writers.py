"""Records written are records read: every form, any text, whole or not at all."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrl_lm import data
from jaxrl_lm.data import (
    BestOfK,
    LanguageModeling,
    Preference,
    Prompt,
    PromptCompletion,
    Rating,
    UnpairedPreference,
    write_jsonl,
)
from jaxrl_lm.errors import InputError

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
answers = any_text.filter(str.strip)
users = st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": any_text})
replies = st.fixed_dictionaries({"role": st.just("assistant"), "content": answers}, optional={"name": any_text})
conversations = st.tuples(users, users | replies).map(list)
turns = st.lists(replies, min_size=1, max_size=2)

prompts_with_answers = st.one_of(
    st.tuples(any_text, st.lists(answers, min_size=2, max_size=4, unique=True)),
    st.tuples(conversations, st.lists(turns, min_size=2, max_size=4, unique_by=repr)),
    st.tuples(conversations, st.lists(answers, min_size=2, max_size=4, unique=True)),
)


def best_of_k(drawn):
    (prompt, completions), best = drawn
    return BestOfK(prompt=prompt, completions=tuple(completions), best=best % len(completions))


# What to draw, and the record to make of it.
FORMS = {
    data.read_prompts: (answers, lambda text: Prompt(prompt=text, columns={"answer": text, "n": [1, None, 0.5]})),
    data.read_language_modeling: (st.one_of(answers, turns), lambda text: LanguageModeling(text=text)),
    data.read_prompt_completions: (
        prompts_with_answers,
        lambda drawn: PromptCompletion(prompt=drawn[0], completion=drawn[1][0]),
    ),
    data.read_preferences: (
        prompts_with_answers,
        lambda drawn: Preference(prompt=drawn[0], chosen=drawn[1][0], rejected=drawn[1][1]),
    ),
    data.read_unpaired_preferences: (
        st.tuples(prompts_with_answers, st.booleans()),
        lambda drawn: UnpairedPreference(prompt=drawn[0][0], completion=drawn[0][1][0], label=drawn[1]),
    ),
    data.read_best_of_k: (st.tuples(prompts_with_answers, st.integers(0, 11)), best_of_k),
    data.read_ratings: (
        st.tuples(answers, st.floats(allow_nan=False, allow_infinity=False)),
        lambda drawn: Rating(text=drawn[0], rating=drawn[1]),
    ),
}


@pytest.mark.parametrize("reader", FORMS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
def test_records_of_every_form_come_back_as_they_were(tmp_path, reader, drawn):
    strategy, make = FORMS[reader]
    records = [make(contents) for contents in drawn.draw(st.lists(strategy, min_size=1, max_size=3))]
    for name in ("records.jsonl", "records.JSONL.gz"):
        write_jsonl(tmp_path / name, records)
        assert reader(str(tmp_path / name)) == records


def test_the_columns_are_named_as_others_name_them(tmp_path):
    path = tmp_path / "records.jsonl"
    records = [
        LanguageModeling(text="é"),
        LanguageModeling(text=[{"role": "user", "content": "a"}]),
        PromptCompletion(prompt="a", completion="b"),
        Preference(prompt="a", chosen="b", rejected="c"),
        UnpairedPreference(prompt="a", completion="b", label=True),
        BestOfK(prompt="a", completions=("b", "c"), best=1),
    ]
    write_jsonl(path, records)
    assert path.read_bytes().decode().splitlines() == [
        '{"text": "é"}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"prompt": "a", "completion": "b"}',
        '{"prompt": "a", "chosen": "b", "rejected": "c"}',
        '{"prompt": "a", "completion": "b", "label": true}',
        '{"query": "a", "sample0": "b", "sample1": "c", "best": 1}',
    ]


def test_compressed_files_are_the_same_whenever_they_are_written(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    write_jsonl(path, [Rating(text="a", rating=1.0)])
    assert json.loads(gzip.decompress(path.read_bytes())) == {"text": "a", "rating": 1.0}
    assert path.read_bytes()[4:8] == bytes(4)


@pytest.mark.parametrize(
    ("record", "part"),
    [
        (LanguageModeling(text="half \ud83d"), "surrogates not allowed"),
        (Rating(text="a", rating=float("nan")), "not JSON compliant"),
        (Prompt(prompt="a", columns={"made": {1, 2}}), "set is not JSON serializable"),
    ],
)
def test_a_record_that_cannot_be_written_is_named_and_the_old_file_stays(tmp_path, record, part):
    path = tmp_path / "records.jsonl"
    path.write_text("old")
    with pytest.raises(InputError, match=r"record 1 \(counting from 0\) cannot be written as JSON") as caught:
        write_jsonl(path, [LanguageModeling(text="fine"), record])
    assert part in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]
    assert path.read_text() == "old"


def test_places_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(InputError, match=r"records\.csv: .*end its name in \.jsonl"):
        write_jsonl(tmp_path / "records.csv", [])
    with pytest.raises(InputError, match="cannot be written"):
        write_jsonl(tmp_path / "absent" / "records.jsonl", [])
