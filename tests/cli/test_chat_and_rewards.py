"""Chat templates and several rewards through the commands that train, generate and label."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jaxrl_lm.cli.label_completions import LabelAnsweringConfig, complete_prompts
from jaxrl_lm.cli.main import run
from jaxrl_lm.rewards import REWARDS
from jaxrl_lm.storage import read_jsonl
from tests.byte_model import write_byte_model

pytestmark = pytest.mark.usefixtures("pictures_drawn_once")

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% for call in m.tool_calls or [] %}({{ call.name }})"
    "{% endfor %}<|endoftext|>{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
REWARD_FILE = """
def length(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, kind):
    assert all(prompt[0]["role"] == "user" for prompt in prompts)
    log_metric("tokens", len(completion_ids[0]))
    log_extra("update", [trainer_state.global_step] * len(completions))
    return [float(len(completion[0]["content"])) for completion in completions]

async def judge_of_b(completions, kind, **others):
    return [10.0 if each == "b" else None for each in kind]
"""


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_plain_prompts_as_chat_and_several_rewards_with_weights(chat_model: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "hi", "kind": "a"}, {"prompt": "ho", "kind": "b"}])
    (tmp_path / "mine.py").write_text(REWARD_FILE)
    rewards = [f"{tmp_path}/mine.py:length", f"{tmp_path}/mine.py:judge_of_b"]
    options = ["--num-updates=2", "--batch-size=2", "--ppo.num-minibatches=1", "--answers.max-new-tokens=3"]
    command = ["ppo", f"--model={chat_model}", f"--prompts={prompts}", "--chat", f"--out={tmp_path / 'run'}", *options]
    assert run([*command, "--reward", *rewards, "--reward-weights", "2", "0.5"]) == 0
    first, second = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for metrics in (first, second):
        # One of the two answers of an update is judged by both.
        assert metrics["reward/judge_of_b"] == 10.0
        assert metrics["reward/mean"] == pytest.approx(2 * metrics["reward/length"] + 0.5 * 10.0 / 2)
        assert 1 <= metrics["reward/tokens"] <= 3
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert {sample["prompt"] for sample in samples} == {"user: hi", "user: ho"}
    assert {(sample["phase"], sample["update"]) for sample in samples} == {("before", 0), ("after", 2)}


def test_generated_completions_can_be_rendered_again_with_the_tools_of_their_prompts(
    chat_model: Path, tmp_path: Path
) -> None:
    columns = {"tools": [{"name": "clock"}], "chat_template_kwargs": {"mood": "calm"}}
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": [{"role": "user", "content": "Time?"}], **columns}])
    out = tmp_path / "out.jsonl"
    assert run(["generate", f"--model={chat_model}", f"--prompts={prompts}", f"--out={out}", "--max-new-tokens=2"]) == 0
    (row,) = read_jsonl(out)
    assert {name: row.get(name) for name in columns} == columns


def test_a_prompt_that_no_reward_judges_is_named_before_the_run_begins(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "hi", "kind": "a"}])
    (tmp_path / "mine.py").write_text(REWARD_FILE)
    command = ["grpo", f"--model={chat_model}", f"--prompts={prompts}", f"--reward={tmp_path}/mine.py:judge_of_b"]
    assert run([*command, f"--out={tmp_path / 'run'}", "--answers.max-new-tokens=3"]) == 2
    assert "of the prompt 'hi': reward function 'judge_of_b' returned None" in capsys.readouterr().err


def test_tool_calls_are_learned_by_the_command_and_shown_to_the_template(chat_model: Path, tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
    turns = [{"role": "user", "content": "?"}, call, {"role": "tool", "content": "1"}]
    data = write_rows(tmp_path / "d.jsonl", [{"messages": [*turns, {"role": "assistant", "content": "1."}]}])
    command = ["sft", f"--model={chat_model}", f"--data={data}", f"--out={tmp_path / 'run'}", "--loss-on=assistant"]
    options = ["--num-updates=1", "--batch-size=1", "--evaluation-fraction=0", "--num-samples=1"]
    assert run([*command, *options, "--max-new-tokens=3"]) == 0
    assert read_jsonl(tmp_path / "run" / "samples.jsonl")[0]["prompt"].startswith("u:?")


def test_prompts_that_hold_images_are_refused_by_name(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = [{"type": "text", "text": "q"}, {"type": "image", "image": "a.png"}]
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": [{"role": "user", "content": content}]}])
    assert run(["generate", f"--model={chat_model}", f"--prompts={prompts}"]) == 2
    assert "a part of the type 'image' is not supported, only text is" in capsys.readouterr().err


def test_labels_of_chat_prompts_are_of_conversations(chat_model: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "hi"}])
    config = LabelAnsweringConfig(chat=True, max_new_tokens=3)
    (row,) = complete_prompts(str(chat_model), str(prompts), "prompt", "pairwise", config, tmp_path / "answers")
    assert row.prompt == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("command", ["ppo", "grpo"])
def test_the_help_lists_every_built_in_reward(command: str, capsys: pytest.CaptureFixture) -> None:
    run([command, "--help"])
    said = re.sub(r"[^\w(),]+", " ", capsys.readouterr().out)
    assert f"a built in s name ({', '.join(REWARDS)})" in said
