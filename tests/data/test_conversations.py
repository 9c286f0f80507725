"""Conversations in files: tool calls, lists of text parts, and columns for the chat template are read and written."""

import json

import pytest

from jaxrl_lm.data import (
    Conversation,
    Prompt,
    read_best_of_k,
    read_language_modeling,
    read_preferences,
    read_prompt_completions,
    read_prompts,
    read_unpaired_preferences,
    write_jsonl,
)
from jaxrl_lm.data.fields import check_messages, is_blank
from jaxrl_lm.errors import InputError
from tests.data.files import WRITERS, write

USER = {"role": "user", "content": "How warm is it?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bo"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL = {"role": "tool", "name": "weather", "content": "21"}
SAYING = {"role": "assistant", "content": "It is 21."}
WORSE = {"role": "assistant", "content": "No idea."}
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
COLUMNS = {"tools": [{"type": "function", "function": {"name": "weather"}}], "chat_template_kwargs": {"brief": True}}


def without_null(message):
    return {key: value for key, value in message.items() if value is not None}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_tool_calls_and_null_content_are_read_as_they_are(tmp_path, form):
    rows = [{"messages": [USER, CALLING, TOOL, SAYING]}, {"messages": [USER, SAYING]}]
    source = write(tmp_path, f"a.{form}", WRITERS[form](rows))
    whole, short = read_language_modeling(source)
    assert whole.text == [USER, without_null(CALLING), TOOL, SAYING]
    assert short.text == [USER, SAYING]


def test_arguments_that_only_other_rows_have_are_not_made_null_by_parquet(tmp_path):
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    rows = [{"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]} for call in (CALL, other)]
    source = write(tmp_path, "a.parquet", WRITERS["parquet"](rows))
    assert [record.text for record in read_language_modeling(source)] == [row["messages"] for row in rows]


@pytest.mark.parametrize(
    ("reader", "row", "field"),
    [
        (read_prompts, {"prompt": [USER]}, "prompt"),
        (read_language_modeling, {"messages": [USER, SAYING]}, "text"),
        (read_prompt_completions, {"prompt": [USER], "completion": [SAYING]}, "prompt"),
        (read_preferences, {"prompt": [USER], "chosen": [SAYING], "rejected": [WORSE]}, "prompt"),
        (read_preferences, {"chosen": [USER, SAYING], "rejected": [USER, WORSE]}, "prompt"),
        (read_unpaired_preferences, {"prompt": [USER], "completion": [SAYING], "label": True}, "prompt"),
        (read_best_of_k, {"query": [USER], "sample0": [SAYING], "sample1": [WORSE], "best": 0}, "prompt"),
    ],
)
def test_every_form_keeps_the_columns_for_the_chat_template_and_writes_them_back(tmp_path, reader, row, field):
    source = write(tmp_path, "a.jsonl", json.dumps(row | COLUMNS))
    written = tmp_path / "b.jsonl"
    write_jsonl(written, reader(source))
    as_text = {name: json.dumps(value) for name, value in COLUMNS.items()}
    for file in (source, str(written), write(tmp_path, "c.jsonl", json.dumps(row | as_text))):
        (record,) = reader(file)
        conversation = getattr(record, field)
        assert isinstance(conversation, Conversation)
        assert conversation.tools == COLUMNS["tools"]
        assert conversation.template_arguments == COLUMNS["chat_template_kwargs"]


def test_a_prompt_made_of_its_columns_has_its_tools():
    prompt = Prompt(prompt=[USER], columns=COLUMNS)
    assert isinstance(prompt.prompt, Conversation)
    assert prompt.prompt.tools == COLUMNS["tools"]
    wrapped = Prompt(prompt="hi", columns=COLUMNS).as_chat().prompt
    assert isinstance(wrapped, Conversation)
    assert wrapped.tools == COLUMNS["tools"]
    assert prompt.as_chat() is prompt
    assert Prompt(prompt="hi", columns={}).as_chat().prompt == [{"role": "user", "content": "hi"}]


def test_text_parts_are_kept_and_an_answer_of_them_says_something(tmp_path):
    answer = {"role": "assistant", "content": PARTS}
    source = write(tmp_path, "a.jsonl", json.dumps({"prompt": [USER], "completion": [answer]}))
    (record,) = read_prompt_completions(source)
    assert record.completion == [answer]
    assert Prompt(prompt=[{"role": "user", "content": PARTS}], columns={}).text() == "user: ab"
    assert not is_blank([CALLING])
    assert is_blank([{"role": "assistant", "content": [{"type": "text", "text": " "}]}])


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (
            {"content": [{"type": "image", "image": "a.png"}]},
            "message 0, part 0: a part of the type 'image' is not supported",
        ),
        ({"content": [*PARTS, {"type": "image_url"}]}, "part 2: a part of the type 'image_url' is not supported"),
        ({"content": [{"type": "text"}]}, "part 0: a part of the type 'text' is not supported"),
        ({"content": ["hi"]}, "part 0: 'hi' is not supported"),
        ({"content": None}, "its 'content' is missing or not text"),
        ({"content": "x", "tool_calls": "f()"}, "its 'tool_calls' is not a list of objects"),
        ({"content": "x", "tool_calls": [{"name": "half \ud83d"}]}, "half of a surrogate pair"),
    ],
)
def test_messages_that_cannot_be_read_are_named(message, part):
    with pytest.raises(InputError) as caught:
        check_messages([{"role": "user", **message}], "here")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"tools": "weather"}, "'tools': 'weather' is not a list of objects"),
        ({"tools": ["weather"]}, "'tools': ['weather'] is not a list of objects"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs': [1] is not an object"),
        ({"chat_template_kwargs": {"tokenize": True}}, "'tokenize' is not a template variable"),
    ],
)
def test_columns_for_the_chat_template_that_are_none_are_refused(tmp_path, columns, part):
    source = write(tmp_path, "a.jsonl", json.dumps({"messages": [USER, SAYING]} | columns))
    with pytest.raises(InputError) as caught:
        read_language_modeling(source)
    assert part in str(caught.value)


def test_columns_for_the_chat_template_mean_nothing_to_plain_texts(tmp_path):
    source = write(tmp_path, "a.jsonl", json.dumps({"text": "hi", "tools": "weather"}))
    assert read_language_modeling(source)[0].text == "hi"
