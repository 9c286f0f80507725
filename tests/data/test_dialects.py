"""ShareGPT and Alpaca: every reader makes of them what it makes of the same rows in TRL's columns."""

import pytest

from jaxrl_lm.data import (
    LanguageModeling,
    Preference,
    Prompt,
    PromptCompletion,
    UnpairedPreference,
    read_language_modeling,
    read_preferences,
    read_prompt_completions,
    read_prompts,
    read_unpaired_preferences,
)
from jaxrl_lm.data.rows import try_rows
from tests.data.files import BLUE, GREEN, MORE, SKY, SYSTEM, WRITERS, one, refused, write

HUMAN = {"from": "human", "value": SKY["content"]}
GPT = {"from": "gpt", "value": BLUE["content"]}
WORSE = {"from": "gpt", "value": GREEN["content"]}
MORE_HUMAN = {"from": "human", "value": MORE["content"]}


@pytest.mark.parametrize("column", ["conversations", "conversation", "messages"])
@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_sharegpt_is_read_as_messages(tmp_path, column, form):
    row = {"id": 3, column: [{"from": "system", "value": SYSTEM["content"]}, HUMAN, GPT]}
    source = write(tmp_path, f"a.{form}", WRITERS[form]([row, row]))
    assert read_language_modeling(source) == [LanguageModeling(text=[SYSTEM, SKY, BLUE])] * 2


def test_roles_of_sharegpt(tmp_path):
    roles = {
        "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
        "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
        "function_call": "assistant", "narrator": "narrator",
    }  # fmt: skip
    row = {"conversations": [{"from": role, "value": role, "weight": 1} for role in roles]}
    (read,) = one(read_language_modeling, tmp_path, row)
    assert read.text == [{"role": role, "content": name} for name, role in roles.items()]


def test_a_system_column_is_the_first_message(tmp_path):
    row = {"system": SYSTEM["content"], "conversations": [HUMAN, GPT]}
    assert one(read_language_modeling, tmp_path, row) == [LanguageModeling(text=[SYSTEM, SKY, BLUE])]
    assert one(read_language_modeling, tmp_path, row | {"system": ""}) == [LanguageModeling(text=[SKY, BLUE])]


def test_preferences_of_sharegpt(tmp_path):
    """LLaMA-Factory's form: the answers are single messages next to the conversation."""
    expected = [Preference(prompt=[SKY], chosen=[BLUE], rejected=[GREEN])]
    row = {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE}
    assert one(read_preferences, tmp_path, row) == expected
    assert one(read_preferences, tmp_path, {"chosen": [HUMAN, GPT], "rejected": [HUMAN, WORSE]}) == expected
    assert one(read_preferences, tmp_path, {"prompt": [HUMAN], "chosen": [GPT], "rejected": [WORSE]}) == expected


def test_labelled_completions_of_sharegpt(tmp_path):
    row = {"conversations": [HUMAN, GPT], "label": True}
    expected = [UnpairedPreference(prompt=[SKY], completion=[BLUE], label=True)]
    assert one(read_unpaired_preferences, tmp_path, row) == expected


def test_prompts_of_conversations_end_before_the_last_answer(tmp_path):
    for row in ({"conversations": [HUMAN, GPT, MORE_HUMAN, WORSE]}, {"messages": [SKY, BLUE, MORE, GREEN]}):
        assert one(read_prompts, tmp_path, row)[0].prompt == [SKY, BLUE, MORE]
    assert one(read_prompts, tmp_path, {"conversations": [HUMAN]})[0].prompt == [SKY]
    refused(read_prompts, tmp_path, {"conversations": [GPT]}, "no column 'prompt'")


@pytest.mark.parametrize("form", WRITERS)
def test_alpaca_is_read_as_prompts_and_completions(tmp_path, form):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
    ]
    source = write(tmp_path, f"a.{form}", WRITERS[form](rows))
    prompts = [[{"role": "user", "content": text}] for text in ("Add.\n1 2", "Say hello.")]
    completions = ["3", "Hello."]
    assert read_prompt_completions(source) == [
        PromptCompletion(prompt=prompt, completion=completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    assert [read.prompt for read in read_prompts(source)] == prompts


def test_alpaca_with_a_system_text_a_history_and_preferences(tmp_path):
    row = {
        "system": SYSTEM["content"],
        "history": [[SKY["content"], BLUE["content"]]],
        "instruction": MORE["content"],
        "chosen": "Green.",
        "rejected": "Red.",
    }
    prompt = [SYSTEM, SKY, BLUE, MORE]
    assert one(read_preferences, tmp_path, row) == [Preference(prompt=prompt, chosen="Green.", rejected="Red.")]


def test_columns_of_trl_win_and_other_columns_stay(tmp_path):
    row = {"prompt": "P", "completion": "C", "instruction": "I", "output": "O", "conversations": [HUMAN, GPT]}
    assert one(read_prompt_completions, tmp_path, row) == [PromptCompletion(prompt="P", completion="C")]
    (prompt,) = one(read_prompts, tmp_path, row, column="instruction")
    others = {"prompt": "P", "completion": "C", "output": "O", "conversations": [SKY, BLUE]}
    assert prompt == Prompt(prompt="I", columns=others)
    (prompt,) = one(read_prompts, tmp_path, {"conversations": [HUMAN]}, column="conversations")
    assert prompt == Prompt(prompt=[SKY], columns={})


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": "text"},
        {"conversations": []},
        {"conversations": [7]},
        {"conversations": [{"from": 7, "value": None}]},
        {"conversations": {"from": "human"}},
        {"conversations": [{"from": "human", "value": ["x"]}]},
        {"instruction": 7, "output": "x"},
        {"instruction": "x", "input": 7, "output": "x"},
        {"instruction": "x", "output": {"a": 1}},
        {"instruction": "x", "output": "y", "history": [["x"], 7]},
        {"chosen": {"from": 1, "value": 2}, "rejected": 7},
    ],
)
def test_rows_that_are_neither_are_refused_with_place(tmp_path, row):
    for reader in (read_language_modeling, read_prompts, read_preferences, read_unpaired_preferences):
        if not (reader is read_prompts and isinstance(row.get("instruction"), str) and row.get("input") != 7):
            refused(reader, tmp_path, row)


def test_rows_without_any_of_these_columns_are_left_as_they_are(tmp_path):
    rows = [{"prompt": "a", "x": [{"from": "here"}]}, {"prompt": [SKY]}]
    source = write(tmp_path, "a.jsonl", WRITERS["jsonl"](rows))
    assert [row for _, row in try_rows(source, line_column=None)] == rows
