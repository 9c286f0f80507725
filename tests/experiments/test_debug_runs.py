"""Every experiment imports and runs with --debug; the benchmarks run on a tiny model."""

import dataclasses
import importlib
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrl_lm.cli import demo
from jaxrl_lm.models import from_pretrained, param_shapes, save_pretrained

CHECKOUT = Path(__file__).resolve().parents[2]
RATIO_ERROR = "first_minibatch_ratio_error_max"
WITHOUT_PPO = {"005_dialogue_model"}
EXPERIMENTS = sorted(CHECKOUT.glob("experiments/*/run.py"))

pytestmark = pytest.mark.usefixtures("pictures_drawn_once")


@pytest.fixture(scope="module")
def dialogue_of_one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's files with the first of the model's four layers only: a quarter of the programs to trace."""
    folder = tmp_path_factory.mktemp("dialogue") / "dialogue"
    shutil.copytree(demo.DIALOGUE, folder)
    model, params = from_pretrained(folder / "model")
    hf_json = json.dumps(model.config.hf_config() | {"n_layer": 1})
    cut = model.clone(config=dataclasses.replace(model.config, num_layers=1, hf_json=hf_json))
    kept = flatten_dict(param_shapes(cut))
    params = unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if path in kept})
    save_pretrained(folder / "model", cut, params, format="flax")
    return folder


def run_script(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a script of the checkout with this interpreter."""
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)


def run_here(script: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Run a script in this process: imports and the programs that experiments have in common are made once."""
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda script: script.parent.name)
def test_experiment_runs_with_debug(
    script: Path, tmp_path: Path, shared_data: Path, dialogue_of_one_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DIALOGUE", dialogue_of_one_layer)
    run_here(script, monkeypatch, "--debug", f"--out={tmp_path / 'run'}")
    results = json.loads((tmp_path / "run-debug" / "results.json").read_text())
    errors = [row[RATIO_ERROR] for row in results.values() if isinstance(row, dict) and RATIO_ERROR in row]
    assert bool(errors) == (script.parent.name not in WITHOUT_PPO)
    assert max(errors, default=0.0) < 1e-4
    assert (tmp_path / "run-debug" / "curves.png").is_file()
    assert (script.parent / "README.md").is_file()
    if script.parent.name == "006_movie_reviews":  # the reward models are those of the first run
        run_here(script, monkeypatch, "--debug", f"--out={tmp_path / 'run'}", "--lora-rank=2")
        results = json.loads((tmp_path / "run-debug" / "results-lora-2.json").read_text())
        assert results["ppo"][RATIO_ERROR] < 1e-4


def test_mazes_are_learned_through_a_window_and_a_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = CHECKOUT / "experiments/003_maze_ppo/run.py"
    sizes = ["--size=5", "--observation=window", "--memory-size=8", "--hidden-sizes=8"]
    run_here(script, monkeypatch, "--debug", f"--out={tmp_path / 'run'}", *sizes)
    results = json.loads((tmp_path / "run-debug" / "results.json").read_text())
    assert results["settings"]["memory_size"] == 8
    assert results["seed-0"][RATIO_ERROR] < 1e-4
    assert (tmp_path / "run-debug" / "episode.gif").is_file()


def test_replay_benchmark_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "replay.json"
    sizes = ["--num-envs=4", "--batch-size=4", "--buffer-size=64", "--num-rounds=8", "--repeats=1"]
    done = run_script(CHECKOUT / "benchmarks/replay.py", f"--out={out}", *sizes)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["rounds"]["ours, prioritised"]["microseconds_a_round"] > 0


@pytest.mark.parametrize("name", ["env_steps", "train_steps", "lm_step", "plans", "ragged_step", "on_policy"])
def test_benchmark_scripts_are_importable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they measure is tested with `jaxrl-lm bench` (tests/benchmarking); their peers are not installed."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    assert importlib.import_module(name).main
