"""Answers that the policy makes for people to judge, and their being kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jaxrl_lm.cli.label_completions import LabelAnsweringConfig, complete_prompts
from jaxrl_lm.errors import InputError
from tests.byte_model import write_byte_model

CONFIG = LabelAnsweringConfig(max_new_tokens=4, batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "byte-gpt2"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    return str(folder)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "p.txt").write_text("ab\ncde\n")
    return str(tmp_path / "p.txt")


def test_the_policy_answers_each_prompt_as_often_as_the_mode_shows(model: str, prompts: str, tmp_path: Path) -> None:
    rows = complete_prompts(model, prompts, "prompt", "best-of-4", CONFIG, tmp_path / "answers")
    assert [row.prompt for row in rows] == ["ab", "cde"]
    assert all(len(set(row.completions)) == 4 for row in rows)  # each is a sample of its own


def test_answers_are_made_once_and_only_with_the_same_options(model: str, prompts: str, tmp_path: Path) -> None:
    def answers(config: LabelAnsweringConfig):
        return complete_prompts(model, prompts, "prompt", "pairwise", config, tmp_path / "answers")

    first = answers(CONFIG)
    file = tmp_path / "answers" / "answers.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["completions"] = ["kept", "as it is"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = answers(CONFIG)
    assert again[0].completions == ("kept", "as it is")
    assert again[1].completions == first[1].completions
    with pytest.raises(InputError, match=r"answering\.seed: 0 in the run, 1 now"):
        answers(replace(CONFIG, seed=1))


def test_options_are_those_of_a_start_that_was_killed_before_it_had_answered(
    model: str, prompts: str, tmp_path: Path
) -> None:
    def answers(config: LabelAnsweringConfig):
        return complete_prompts(model, prompts, "prompt", "pairwise", config, tmp_path / "answers")

    first = answers(CONFIG)
    (tmp_path / "answers" / "answers.jsonl").unlink()
    with pytest.raises(InputError, match=r"answering\.seed: 0 in the run, 1 now"):
        answers(replace(CONFIG, seed=1))
    assert answers(CONFIG) == first


def test_answering_options_are_checked() -> None:
    with pytest.raises(InputError, match=r"answering\.num_completions=0"):
        LabelAnsweringConfig(num_completions=0)
    with pytest.raises(InputError, match=r"^batch_size=0"):
        LabelAnsweringConfig(batch_size=0)
