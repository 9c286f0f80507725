"""`jaxrl-lm train`: every algorithm from the command line, and what is refused with exit code 2."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl_lm import load_agent
from jaxrl_lm.cli.commands import list_commands
from jaxrl_lm.cli.main import run
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.storage import RunFolder, read_metrics, read_seeds
from tests.measured import is_measured
from tests.text_model import text_model

TABULAR = ["--num-envs=2", "--num-steps=32"]
SMALL = {
    "sarsa": [*TABULAR, "--env=Pendulum-v1", "--binning.num-bins=4", "--binning.num-actions=3"],
    "dqn": [
        "--env=CartPole-v1",
        "--num-envs=4",
        "--steps-per-update=16",
        "--learning-starts=64",
        "--batch-size=32",
        "--buffer-size=256",
    ],
    "pqn": ["--env=CartPole-v1", "--num-envs=4", "--num-steps=16", "--num-minibatches=2"],
    "ppo": ["--env=CartPole-v1", "--num-envs=4", "--num-steps=16"],
    "text-ppo": ["--env-options", "max_steps=8", "--num-envs=4", "--num-steps=16"],
}

OWN_FILE = str(Path(__file__).parents[1] / "envs" / "own_environments.py")

pytestmark = pytest.mark.usefixtures("pictures_drawn_once")


@pytest.mark.parametrize("name", [name.removeprefix("train ") for name in list_commands("train")])
def test_every_algorithm_trains_evaluates_and_resumes_exactly(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    model = [f"--model={text_model()}"] if name == "text-ppo" else []
    options = [
        *SMALL.get(name, TABULAR),
        *model,
        "--total-steps=256",
        "--chunk-updates=2",
        "--num-seeds=2",
        "--save-every=1",
    ]
    assert run(["train", name, f"--out={out}", *options, "--eval-episodes=8"]) == 0
    assert "eval/return" in capfd.readouterr().out
    folder = RunFolder(out)
    assert read_seeds(folder)["eval/return"].values.shape == (1, 2)
    whole = read_metrics(folder)
    assert len(whole["episode/count"].steps) >= 2
    assert (folder.plots_folder / "seeds.png").is_file()
    # As if it had been stopped before its last checkpoint.
    shutil.rmtree(max(folder.checkpoints_folder.glob("[0-9]*"), key=lambda path: int(path.name)))
    assert run(["train", name, f"--out={out}", *options, "--eval-episodes=8", "--resume"]) == 0
    for metric, curve in read_metrics(folder).items():
        if not is_measured(metric):
            np.testing.assert_array_equal(curve.values, whole[metric].values, err_msg=metric)


def test_q_learning_crosses_the_one_lake_that_it_is_trained_on(tmp_path: Path) -> None:
    options = ["--env=FrozenLake-v0", "--env-options", "num_levels=1", "--no-refresh-levels", *TABULAR]
    sizes = ["--total-steps=8192", "--chunk-updates=16", "--eval-episodes=8"]
    assert run(["train", "q-learning", f"--out={tmp_path / 'run'}", *options, *sizes]) == 0
    curves = read_metrics(RunFolder(tmp_path / "run"))
    # The return is the success rate; "ended" counts falls as well. "eval" plays lakes that training never met.
    assert curves["eval_train/return"].values[-1] == 1.0
    assert curves["eval_train/oracle_share"].values[-1] == 1.0
    assert curves["eval_train/length"].values[-1] == 6.0
    assert curves["eval/ended"].values[-1] >= curves["eval/return"].values[-1]


@pytest.mark.parametrize("options", [["size=5", "num_levels=16"], ["observed=partially"]])
def test_a_language_model_plays_and_is_saved(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    windows = ["--context.turns=3", "--context.kept=1"] if "observed=partially" in options else []
    sizes = ["--num-envs=4", "--num-steps=8", "--total-steps=64", "--chunk-updates=1", "--eval-episodes=4"]
    command = ["train", "text-ppo", f"--model={text_model()}", f"--out={out}", *sizes, *windows]
    if windows:
        command += ["--unit=turn", "--kl-coefficient=0.1"]
    assert run([*command, "--env-options", "max_steps=4", *options]) == 0
    curves = read_metrics(RunFolder(out))
    assert max(curves["ratio/first_max_error"].values) < 1e-4
    if windows:
        assert curves["kl/turn"].values[0] == pytest.approx(0.0, abs=1e-5)
        assert curves["kl/turn"].values[1] != 0.0
    before, after = (from_pretrained(folder)[1] for folder in (text_model(), RunFolder(out).model_folder))
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), before, after)
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "kl_coefficient=0.1,0.2"], "with kl_coefficient=0 no reference is kept"),
        (["--env-options", "tokenizer=x"], "tokenizer is that of the model"),
    ],
)
def test_settings_of_text_ppo_that_would_do_nothing_are_refused(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "text-ppo", f"--model={text_model()}", f"--out={tmp_path / 'run'}", *options]) == 2
    assert message in " ".join(capfd.readouterr().err.replace("│", " ").split())


def test_ppo_refuses_a_text_world(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "ppo", "--env=TextMaze-v0", f"--out={tmp_path / 'run'}"]) == 2
    assert "in a text world use text-ppo" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("env", ["FrozenLake-v0", "Sokoban-v0"])
def test_ppo_plays_generated_games_and_is_evaluated_on_levels_held_out(env: str, tmp_path: Path) -> None:
    options = ["--env-options", "num_levels=32", *(["observation=grid"] if env == "FrozenLake-v0" else [])]
    sizes = ["--num-envs=8", "--num-steps=16", "--total-steps=512", "--chunk-updates=2", "--eval-episodes=16"]
    assert run(["train", "ppo", f"--env={env}", f"--out={tmp_path / 'run'}", *options, *sizes]) == 0
    curves = read_metrics(RunFolder(tmp_path / "run"))
    assert np.isfinite(curves["loss/total"].values).all()
    regret, oracle_share = (curves[f"eval/{name}"].values[-1] for name in ("regret", "oracle_share"))
    assert regret >= 0
    assert oracle_share <= 1
    assert 1 <= curves["eval/distinct_layouts"].values[-1] <= 16


def test_a_runs_config_file_starts_it_again(tmp_path: Path) -> None:
    options = [*SMALL["sarsa"], "--total-steps=128", "--chunk-updates=2", "--eval-episodes=4"]
    assert run(["train", "sarsa", f"--out={tmp_path / 'first'}", *options, "--learning-rate=0.25"]) == 0
    config = tmp_path / "first" / "config.yaml"
    assert run(["train", "sarsa", f"--config={config}", f"--out={tmp_path / 'again'}"]) == 0
    again = RunFolder(tmp_path / "again").read_config()
    assert (again["learning_rate"], again["binning"]["num_bins"]) == (0.25, 4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["ppo", "--env=Maize-v0"], ["Maize-v0", "Maze-v0"]),
        (["ppo", "--env-options", "size=8"], ["size=8", "odd"]),
        (["ppo", "--env-options", "sise=9"], ["sise", "size"]),
        (["ppo", "--env-options", "layout=nowhere"], ["layout"]),
        (["ppo", "--env-options", "num_levels=90000000000"], ["num_levels=90000000000", "GB"]),
        (["ppo", "--discount=1.2"], ["discount=1.2"]),
        (["ppo", "--num-envs=3", "--num-steps=3"], ["num_minibatches=8", "9 steps"]),
        (["dqn", "--env=Pendulum-v1"], ["ppo"]),
        (["pqn", "--env=Pendulum-v1"], ["ppo"]),
        (["q-learning", "--env=CartPole-v1"], ["bin"]),
        (["ppo", "--env=CartPole-v1", "--num-devices=64"], ["num_devices=64"]),
        (["ppo", "--env-options", "observation=position"], ["observation=position", "observation=grid"]),
        (["ppo", "--env=MetaMaze-misc", "--env-options", "maze_size=8"], ["maze_size", "rf_size"]),
        (["ppo", "--env=CartPole-v1", "--env-options", "gravty=3"], ["gravty", "gravity"]),
        (["ppo", "--env=CartPole-v1", "--wrappers", "frame_stak"], ["frame_stack"]),
        (["ppo", f"--env={OWN_FILE}:FiveValues"], [OWN_FILE, "six values"]),
        (["ppo", "--sweep", "learning_rate=1e-3,1e-3"], ["1e-3,1e-3", "twice"]),
        (["dqn", "--env=CartPole-v1", "--buffer-size=1000000000", "--num-seeds=64"], ["replay", "buffer_size", "GB"]),
    ],
)
def test_bad_input_exits_with_2_and_leaves_nothing(
    args: list[str], words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", args[0], f"--out={tmp_path / 'run'}", *args[1:]]) == 2
    message = capfd.readouterr().err
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


def test_an_environment_of_ones_own_is_trained_in_a_grid_evaluated_and_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = [f"--env={OWN_FILE}:Corridor", "--wrappers", "frame_stack=2", "--env-options", "length=2", "bonus=3"]
    sizes = [*SMALL["ppo"][1:], "--total-steps=128", "--chunk-updates=1", "--eval-episodes=4"]
    sweep = ["--sweep", "learning_rate=1e-3,1e-4", "discount=0.9,0.8"]
    assert run(["train", "ppo", f"--out={out}", *options, *sizes, *sweep]) == 0
    labels = {name.partition(" ")[2] for name in read_metrics(RunFolder(out)) if name.startswith("eval/return")}
    assert labels == {
        f"learning_rate={rate} discount={discount}" for rate in ("0.001", "0.0001") for discount in ("0.9", "0.8")
    }
    capfd.readouterr()
    assert run(["evaluate", f"--run={out}", "--episodes=4"]) == 0
    assert "eval/return" in capfd.readouterr().out
    assert run(["train", "ppo", f"--out={out}", *options, *sizes, *sweep, "--resume"]) == 0
    assert "has ended" in capfd.readouterr().err
    agent = load_agent(out, value={"learning_rate": 1e-3, "discount": 0.8})
    observation, _ = agent.env.reset(jax.random.key(0), agent.env_params)
    assert int(agent.act(observation, jax.random.key(1))) in (0, 1)
    with pytest.raises(InputError, match=r"value=0.001: choose one of the run's: learning_rate=0.001 discount=0.9, "):
        load_agent(out, value=1e-3)
    with pytest.raises(InputError, match="seed=1: the run has seeds 0 to 0"):
        load_agent(out, seed=1)


def test_the_help_names_what_can_be_swept(capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (("ppo", ["clip_range", "trace_decay"]), ("dqn", ["epsilon_end"]), ("sarsa", ["visit_power"])):
        assert run(["train", name, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert all(word in shown.partition("--sweep takes:")[2] for word in words)


def test_a_run_is_evaluated_on_other_levels_and_reported_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--env-options", "size=5", "observation=grid", "num_levels=16", "max_steps=16"]
    options += ["--wrappers", "frame_stack=2"]
    sizes = ["--num-envs=4", "--num-steps=8", "--total-steps=64", "--chunk-updates=1", "--num-seeds=2"]
    trunk = ["--policy.trunk.kind=mlp", "--policy.trunk.hidden-sizes", "8"]
    assert run(["train", "ppo", f"--out={out}", *options, *sizes, *trunk, "--eval-episodes=8"]) == 0
    (out / "report.html").unlink()
    assert run(["report", f"--run={out}"]) == 0
    assert (out / "report.html").is_file()
    capfd.readouterr()
    assert run(["evaluate", f"--run={out}", "--episodes=12", "--env-options", "generator=wilson"]) == 0
    shown = capfd.readouterr().out
    for metric in ("eval/solved", "eval_sampled/solved", "eval_train/solved", "eval/distinct_layouts"):
        assert metric in shown
    assert "nan" not in shown
    assert "newest checkpoint (chunk 2, 64 steps): 12 episodes per seed" in shown
    assert run(["evaluate", f"--run={out}", "--checkpoint=best"]) == 2
    assert "train with --eval-every" in capfd.readouterr().err
    assert run(["evaluate", f"--run={out}", "--checkpoint=7"]) == 2
    assert "has checkpoints 0, 2; choose one of these numbers, newest or best" in capfd.readouterr().err
    assert run(["evaluate", f"--run={out}", "--checkpoint=0", "--episodes=4"]) == 0
    assert "checkpoint (chunk 0, 0 steps): 4 episodes per seed" in capfd.readouterr().out
    assert run(["evaluate", f"--run={out}", "--env-options", "size=7"]) == 2
    assert "keep size and observation" in capfd.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("model: x\n")
    assert run(["evaluate", f"--run={tmp_path / 'other'}"]) == 2
    assert "was not made by jaxrl-lm train" in capfd.readouterr().err


def test_a_help_text_leaves_the_algorithms_as_they_are(capsys):
    """A run was once read with the class that had been derived to print a help text, and lacked its algorithm."""
    from jaxrl_lm.training.environments.algorithms import TrainPPOConfig, find_settings

    assert run(["train", "ppo", "--help"]) == 0
    assert "--total-steps" in capsys.readouterr().out
    assert find_settings("ppo") is TrainPPOConfig
