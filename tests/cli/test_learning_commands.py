"""The commands that learn from examples and from groups of answers, through the command line."""

import json
from pathlib import Path

import pytest

from jaxrl_lm.cli.main import parse, run
from tests.byte_model import write_byte_model

COMMON = ["--num-updates=1", "--batch-size=2", "--num-samples=1"]

pytestmark = pytest.mark.usefixtures("pictures_drawn_once")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    folder = tmp_path_factory.mktemp("models") / "byte-gpt2"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[str]]:
    """What each command reads."""
    rows = {
        "sft": [{"prompt": letter, "completion": "x"} for letter in "abcd"],
        "dpo": [{"prompt": letter, "chosen": "x", "rejected": "y"} for letter in "abcd"],
    }
    for name, records in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "prompts.txt").write_text("ab\n")
    answers = [f"--prompts={tmp_path / 'prompts.txt'}", "--reward=vowels", "--answers.max-new-tokens=3"]
    return {
        "sft": [f"--data={tmp_path / 'sft.jsonl'}", "--max-new-tokens=3"],
        "dpo": [f"--preferences={tmp_path / 'dpo.jsonl'}", "--max-new-tokens=3"],
        "rloo": [*answers, "--group-size=2"],
        "grpo": [*answers, "--group-size=2"],
    }


@pytest.mark.parametrize("command", ["sft", "dpo", "rloo", "grpo"])
def test_command_trains_says_where_everything_lies_and_its_config_is_a_config_file(
    command: str, model: Path, files: dict[str, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [command, f"--model={model}", f"--out={tmp_path / 'run'}", *files[command], *COMMON]
    assert run(line) == 0
    assert str(tmp_path / "run" / "report.html") in capfd.readouterr().out
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert parse([command, f"--config={tmp_path / 'run' / 'config.yaml'}"]) == parse(line)
    assert run(line) == 2
    assert "--resume" in capfd.readouterr().err
