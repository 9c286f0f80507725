"""Runs that train adapters, and the command that merges them, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxrl_lm.cli.main import run
from jaxrl_lm.rewards.learned import load_reward
from jaxrl_lm.storage import RunFolder, read_jsonl
from tests.byte_model import write_byte_model

pytestmark = pytest.mark.usefixtures("pictures_drawn_once")
Train = Callable[..., RunFolder]
ROWS = [{"prompt": a, "completion": "x", "chosen": "x", "rejected": "yy"} for a in "abcdefgh"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    folder = tmp_path_factory.mktemp("models") / "byte-gpt2"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    return folder


@pytest.fixture(scope="module")
def train(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs a command on the tiny model, with adapters, in a folder of the name."""
    room = tmp_path_factory.mktemp("runs")
    (room / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (room / "prompts.txt").write_text("ab\n")
    options = {
        "sft": [f"--data={room / 'rows.jsonl'}", "--max-new-tokens=3", "--num-samples=1", "--evaluation-fraction=0"],
        "reward-model": [f"--preferences={room / 'rows.jsonl'}", "--normalisation.num-samples=4"],
        "ppo": [f"--prompts={room / 'prompts.txt'}", "--reward=vowels", "--answers.max-new-tokens=3"],
    }

    def call(name: str, command: str, *more: str) -> RunFolder:
        line = [command, f"--model={base}", f"--out={room / name}", "--batch-size=2", "--lora.rank=2", "--lora.alpha=9"]
        assert run([*line, *options[command], *more]) == 0
        return RunFolder(room / name)

    return call


LEARN = ["--optimizer.learning-rate=0.1", "--optimizer.schedule=constant", "--optimizer.warmup-fraction=0"]
SFT = [*LEARN, "--lora.targets", "c_attn", "mlp.c_fc"]


@pytest.fixture(scope="module")
def tuned(train: Train) -> RunFolder:
    """A finished run of SFT."""
    return train("sft", "sft", "--num-updates=2", *SFT)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_a_run_leaves_a_whole_model_and_an_adapter_that_merges_into_the_same(tuned, base, tmp_path, capfd):
    assert run(["merge", f"--adapter={tuned.path / 'adapter'}", f"--out={tmp_path / 'merged'}"]) == 0
    assert str(tmp_path / "merged") in capfd.readouterr().out
    assert run(["merge", f"--adapter={tuned.path / 'adapter'}", f"--base={base}", f"--out={tmp_path / 'again'}"]) == 0
    whole, merged = weights(tuned.model_folder), weights(tmp_path / "merged")
    assert whole.keys() == merged.keys()
    for name, tensor in whole.items():
        np.testing.assert_allclose(tensor, merged[name], rtol=0, atol=1e-6)
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {p.name for p in tuned.model_folder.iterdir()}
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "merged" / "model.safetensors"
    ).read_bytes()


def test_only_the_targets_moved(tuned, train):
    whole = weights(tuned.model_folder)
    first = weights(train("unmoved", "sft", "--num-updates=1", "--optimizer.learning-rate=1e-30").model_folder)
    moved = {name for name in whole if not np.array_equal(whole[name], first[name])}
    assert moved == {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"}


def test_a_resumed_run_ends_with_the_files_of_one_that_was_not_stopped(tuned, train):
    straight = train("straight", "sft", "--num-updates=3", *SFT)
    resumed = train("sft", "sft", "--num-updates=3", "--resume", *SFT)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (resumed.path / name).read_bytes() == (straight.path / name).read_bytes()


def test_checkpoints_hold_no_base(tuned):
    (description,) = (tuned.checkpoints_folder / "2" / "description").glob("*metadata*")
    leaves = json.loads(description.read_text())["leaves"]
    assert any("lora_a" in name for name in leaves)
    assert not any("wte" in name or name.endswith("['weight']") for name in leaves)


def test_an_adapter_is_a_model_for_generate_but_not_for_adapters_on_top(tuned, tmp_path, capfd):
    completions = []
    for folder in (tuned.path / "adapter", tuned.model_folder):
        assert run(["generate", f"--model={folder}", "--prompt", "a", "--max-new-tokens=4", "--temperature=0.01"]) == 0
        completions.append(capfd.readouterr().out)
    assert completions[0] == completions[1]
    line = ["sft", f"--model={tuned.path / 'adapter'}", "--lora.rank=2", f"--out={tmp_path / 'on-top'}"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]) + "\n")
    assert run([*line, f"--data={tmp_path / 'rows.jsonl'}"]) == 2
    assert "merge it first" in capfd.readouterr().err
    assert not (tmp_path / "on-top").exists()


def test_merging_refuses_a_model_and_an_existing_folder(tuned, base, tmp_path, capfd):
    assert run(["merge", f"--adapter={base}", f"--out={tmp_path / 'merged'}"]) == 2
    assert "adapter_config.json: not found" in capfd.readouterr().err
    assert run(["merge", f"--adapter={tuned.path / 'adapter'}", f"--out={tmp_path}"]) == 2
    assert "exists; choose another folder" in capfd.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_targets_that_match_nothing_end_the_run_before_its_folder_is_made(base, tmp_path, capfd):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    line = ["sft", f"--model={base}", f"--data={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'run'}"]
    assert run([*line, "--lora.rank=2", "--lora.targets", "q_proj"]) == 2
    assert "'q_proj' matches no projection of this model; it has c_attn, c_fc, c_proj" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_reward_models_adapter_scores_as_the_model_does_and_keeps_its_scale(train, tmp_path):
    folder = train("reward", "reward-model", "--num-updates=2", "--evaluation-fraction=0.25", *LEARN)
    assert run(["merge", f"--adapter={folder.path / 'adapter'}", f"--out={tmp_path / 'merged'}"]) == 0
    scores = [
        load_reward(each)(["a", "b"], ["x", "yy"])
        for each in (folder.model_folder, folder.path / "adapter", tmp_path / "merged")
    ]
    assert abs(scores[0][0] - scores[0][1]) > 1e-3
    for each in scores[1:]:
        np.testing.assert_allclose(each, scores[0], rtol=0, atol=1e-5)


def test_ppo_on_a_quantised_base_with_a_value_network(train, base):
    settings = ["--num-updates=2", "--num-samples=1", "--ppo.learning-rate=0.1", "--lora.quantize=nf4"]
    folder = train("ppo", "ppo", *settings, f"--value-model={base}")
    before, after = read_jsonl(folder.samples_file)
    assert before["kl"] == 0
    assert after["kl"] != 0
    for name in ("model", "value_model"):
        adapter = load_file(folder.path / name.replace("model", "adapter") / "adapter_model.safetensors")
        assert any(np.any(tensor) for key, tensor in adapter.items() if "lora_B" in key)
        assert (folder.path / name / "model.safetensors").is_file()
