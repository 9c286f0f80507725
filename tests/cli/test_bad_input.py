"""Bad input through the command line: exit code 2, a message with field, value and remedy, nothing half-written."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxrl_lm.cli.main import run
from tests.byte_model import write_byte_model

REWARDS = "tests.training.rewards_for_tests"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    folder = tmp_path_factory.mktemp("models") / "byte-gpt2"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    return folder


@pytest.fixture
def spoiled(model: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(model, tmp_path / "spoiled"))


@pytest.fixture
def attempt(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `ppo` with these options over good ones, expects exit code 2 and no run folder, gives the message."""
    prompts = tmp_path / "good.txt"
    prompts.write_text("ab\ncd\n")

    def run_ppo(**options: object) -> str:
        good: dict[str, object] = {
            "model": model,
            "prompts": prompts,
            "reward": "vowels",
            "out": tmp_path / "run",
            "num-updates": 1,
            "batch-size": 4,
            "answers.max-new-tokens": 4,
        }
        options = good | options
        args = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
        assert run(["ppo", *args]) == 2
        assert not (tmp_path / "run").exists(), "something was written"
        return capfd.readouterr().err

    return run_ppo


def test_missing_weights(attempt: Callable[..., str], spoiled: Path) -> None:
    (spoiled / "flax_model.msgpack").unlink()
    assert "no weights found" in attempt(model=spoiled)


def test_truncated_weights(attempt: Callable[..., str], spoiled: Path) -> None:
    file = spoiled / "flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:1000])
    assert "copy or download it again" in attempt(model=spoiled)


@pytest.mark.parametrize("name", ["flax_model.msgpack", "model.safetensors"])
def test_random_bytes_as_weights(attempt: Callable[..., str], spoiled: Path, name: str) -> None:
    (spoiled / name).write_bytes(bytes(range(256)) * 4)
    assert name in attempt(model=spoiled)


def test_shapes_that_do_not_fit_the_config(attempt: Callable[..., str], spoiled: Path) -> None:
    config = json.loads((spoiled / "config.json").read_text())
    (spoiled / "config.json").write_text(json.dumps(config | {"n_embd": 32}))
    assert "to different models" in attempt(model=spoiled)


def test_unknown_model_type_lists_those_supported(attempt: Callable[..., str], spoiled: Path) -> None:
    config = json.loads((spoiled / "config.json").read_text())
    (spoiled / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    message = attempt(model=spoiled)
    assert "model_type='mamba'" in message
    assert "gpt2, llama, mistral, ministral, qwen2, qwen3" in message


def test_tokenizer_larger_than_the_embedding(attempt: Callable[..., str], spoiled: Path, tmp_path: Path) -> None:
    file = spoiled / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"] += [
        {**tokenizer["added_tokens"][0], "id": 257 + index, "special": False, "content": f"<extra{index}>"}
        for index in range(3)
    ]
    file.write_text(json.dumps(tokenizer))
    message = attempt(model=spoiled)
    assert "260 tokens" in message
    assert "resize_token_embeddings(260)" in message


def test_missing_tokenizer(attempt: Callable[..., str], spoiled: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (spoiled / name).unlink()
    assert "no tokenizer found" in attempt(model=spoiled)


def test_unreadable_tokenizer(attempt: Callable[..., str], spoiled: Path) -> None:
    (spoiled / "tokenizer.json").write_text("{")
    assert "tokenizer.json, line 1: not valid JSON" in attempt(model=spoiled)
    (spoiled / "tokenizer.json").write_text("{}")
    assert "no tokenizer could be read" in attempt(model=spoiled)


def test_empty_prompt_file(attempt: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl" in attempt(prompts=tmp_path / "empty.jsonl")


def test_prompt_longer_than_the_context(attempt: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("ab\n" + "x" * 40 + "\n")
    message = attempt(prompts=tmp_path / "long.txt")
    assert "40" in message
    assert "28" in message


def test_answers_longer_than_the_context(attempt: Callable[..., str]) -> None:
    assert "max_new_tokens=32" in attempt(**{"answers.max-new-tokens": 32})


def test_minibatches_that_do_not_divide_the_batch(attempt: Callable[..., str]) -> None:
    message = attempt(**{"ppo.num-minibatches": 3})
    assert "num_minibatches=3 does not divide" in message


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("vowel", "vowels"),
        ("tests.training.rewards_for_tests:absent", "absent"),
        (f"{REWARDS}:one_too_few", "returned"),
        (f"{REWARDS}:not_a_number", "nan"),
        ("no_such_module:reward", "no_such_module"),
    ],
)
def test_rewards_that_do_not_serve(attempt: Callable[..., str], reward: str, said: str) -> None:
    assert said in attempt(reward=reward)


def test_stop_text_of_several_tokens(attempt: Callable[..., str]) -> None:
    assert "must be one" in attempt(**{"answers.stop": "ab"})


def test_option_that_does_not_exist(model: Path) -> None:
    assert run(["ppo", "--model", str(model), "--no-such-option", "1"]) == 2


def test_missing_model_folder_without_network(attempt: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is not a folder" in attempt(model="not/a-folder")


def test_run_folder_that_exists(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "p.txt", tmp_path / "run"
    prompts.write_text("ab\n")
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert run(["ppo", f"--model={model}", f"--prompts={prompts}", "--reward=vowels", f"--out={out}"]) == 2
    assert "--resume" in capfd.readouterr().err
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_resuming_where_there_is_no_run(attempt: Callable[..., str]) -> None:
    assert "is not a run folder" in attempt(resume=True)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_are_none(attempt: Callable[..., str], seed: int) -> None:
    assert "seed" in attempt(seed=seed)


@pytest.mark.parametrize(
    ("field", "value"), [("n_head", 3), ("n_head", 0), ("vocab_size", -3), ("n_embd", 0), ("n_embd", "many")]
)
def test_config_of_unfit_sizes(attempt: Callable[..., str], spoiled: Path, field: str, value: object) -> None:
    config = json.loads((spoiled / "config.json").read_text())
    (spoiled / "config.json").write_text(json.dumps(config | {field: value}))
    assert "config.json" in attempt(model=spoiled)


def test_wandb_project_without_wandb(attempt: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "jaxrl-lm[wandb]" in attempt(**{"wandb-project": "mazes"})


def test_nan_as_a_coefficient(attempt: Callable[..., str]) -> None:
    assert "coefficient" in attempt(**{"kl.coefficient": "nan"})
