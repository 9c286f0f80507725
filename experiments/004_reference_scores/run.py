"""Scores of PPO, DQN and PQN compared with published ones: gymnax's environments at the published step budgets.

Every case is a run of `jaxrl-lm train` with all seeds in one program, into `runs/004_reference_scores/CASE/`; a
finished case is not run again. Writes `results.json`, `table.md` and `curves.png` over all cases that have ended.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from jaxrl_lm import storage
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.envs.binning import BinningConfig
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import PolicyConfig
from jaxrl_lm.training.environments.algorithms import TrainDQNConfig, TrainPPOConfig, TrainPQNConfig
from jaxrl_lm.training.environments.train import train_environment

COLORS = {"ppo": "#0072B2", "dqn": "#D55E00", "pqn": "#009E73"}
LAST_SHARE = 0.1  # of a run: episodes that end in it are what a run has reached
# gymnax's README; cleanrl's documentation, its mean and standard deviation over 3 seeds at 500 k steps.
GYMNAX = {
    "CartPole-v1": "500",
    "Acrobot-v1": "-80",
    "FourRooms-misc": "1",
    "Asterix-MinAtar": "15",
    "Breakout-MinAtar": "28",
    "Freeway-MinAtar": "58",
    "SpaceInvaders-MinAtar": "131",
}
CLEANRL = {
    ("ppo", "CartPole-v1"): "490.0 ± 6.1",
    ("dqn", "CartPole-v1"): "498.4 ± 2.3",
    ("pqn", "CartPole-v1"): "495.1 ± 6.9",
    ("ppo", "Acrobot-v1"): "-86.4 ± 1.3",
    ("dqn", "Acrobot-v1"): "-88.9 ± 1.6",
    ("pqn", "Acrobot-v1"): "-95.6 ± 5.7",
    ("ppo", "MountainCar-v0"): "-200",
    ("dqn", "MountainCar-v0"): "-188.9 ± 11.8",
    ("pqn", "MountainCar-v0"): "-200",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One algorithm in one environment.

    Attributes:
        name: of its folder.
        config: settings; `out`, seeds and evaluation are filled in.
    """

    name: str
    config: Any


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Reference scores.

    Attributes:
        out: folder for runs and results.
        only: prefixes of the cases to run, such as ppo or dqn-cartpole; by default all except MinAtar.
        num_seeds: seeds of the small environments.
        num_minatar_seeds: seeds of MinAtar.
        debug: two tiny runs, in seconds.
    """

    out: Path = Path("runs/004_reference_scores")
    only: tuple[str, ...] = field(default=("ppo", "dqn", "pqn"))
    num_seeds: int = 5
    num_minatar_seeds: int = 2
    debug: bool = False


def ppo(env: str, total_steps: int, num_envs: int = 16, **changes: Any) -> TrainPPOConfig:
    """gymnax-blines' settings: learning rate 5e-4, 4 epochs, two networks of 64x64."""
    defaults: dict[str, Any] = {
        "ppo": PPOConfig(
            learning_rate=5e-4,
            num_epochs=4,
            num_minibatches=4,
            minibatch_unit="steps",
            value_coefficient=0.5,
            entropy_coefficient=0.01,
            max_grad_norm=0.5,
        )
    }
    return TrainPPOConfig(
        out="", env=env, total_steps=total_steps, num_envs=num_envs, num_steps=32, **defaults | changes
    )


def pendulum_ppo() -> TrainPPOConfig:
    """A Gaussian policy, with observations and rewards normalised."""
    config = ppo("Pendulum-v1", 1_000_000, has_normalized_observations=True, has_normalized_rewards=True, discount=0.95)
    return replace(config, ppo=replace(config.ppo, learning_rate=1e-3, num_epochs=10, entropy_coefficient=0.0))


def minatar_ppo(env: str) -> TrainPPOConfig:
    """gymnax-blines' settings for MinAtar, but one trunk of 256x256 for policy and values."""
    config = ppo(env, 10_000_000, num_envs=64, discount=0.999)
    return replace(
        config,
        num_steps=128,
        policy=PolicyConfig(trunk=TrunkConfig(hidden_sizes=(256, 256), activation="relu", kind="mlp"), is_shared=True),
        ppo=replace(config.ppo, num_minibatches=8),
    )


def small_cases() -> list[Case]:
    """Classic control and FourRooms."""
    rooms = {"env": "FourRooms-misc", "env_options": ("use_visual_obs=true",), "total_steps": 200_000}
    torques = {"env": "Pendulum-v1", "binning": BinningConfig(num_actions=5), "total_steps": 500_000, "discount": 0.95}
    cases = [
        Case(name="ppo-cartpole", config=ppo("CartPole-v1", 150_000, num_envs=8)),
        Case(name="ppo-acrobot", config=ppo("Acrobot-v1", 500_000)),
        Case(name="ppo-fourrooms", config=ppo("FourRooms-misc", 200_000, env_options=rooms["env_options"])),
        Case(name="ppo-mountaincar", config=ppo("MountainCar-v0", 500_000)),
        Case(name="ppo-pendulum", config=pendulum_ppo()),
    ]
    for algorithm, make in (("dqn", TrainDQNConfig), ("pqn", TrainPQNConfig)):
        cases += [
            Case(name=f"{algorithm}-cartpole", config=make(out="", env="CartPole-v1", total_steps=500_000)),
            Case(name=f"{algorithm}-acrobot", config=make(out="", env="Acrobot-v1", total_steps=500_000)),
            Case(name=f"{algorithm}-fourrooms", config=make(out="", **rooms)),
            Case(name=f"{algorithm}-mountaincar", config=make(out="", env="MountainCar-v0", total_steps=500_000)),
            Case(name=f"{algorithm}-pendulum", config=make(out="", **torques)),
        ]
    return cases


def cases(experiment: Experiment) -> list[Case]:
    """The cases to run."""
    if experiment.debug:
        tiny = {"total_steps": 2048, "num_seeds": 2, "eval_episodes": 4}
        chosen = [case for case in small_cases() if case.name in ("ppo-cartpole", "pqn-pendulum")]
        return [replace(case, config=replace(case.config, **tiny)) for case in chosen]
    small = [replace(c, config=replace(c.config, num_seeds=experiment.num_seeds)) for c in small_cases()]
    games = ("Breakout-MinAtar", "Asterix-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar")
    minatar = [
        Case(
            name=f"minatar-{game.split('-')[0].lower()}",
            config=replace(minatar_ppo(game), num_seeds=experiment.num_minatar_seeds),
        )
        for game in games
    ]
    return [case for case in small + minatar if case.name.startswith(experiment.only)]


def run(case: Case, folder: Path) -> None:
    """Train, unless already done; an interrupted run continues."""
    config = replace(case.config, out=str(folder / case.name))
    run_folder = storage.RunFolder(Path(config.out))
    if run_folder.report_file.exists():
        return
    train_environment(replace(config, resume=run_folder.config_file.exists()))


def summarize(case: Case, folder: Path) -> dict[str, Any]:
    """The seeds' returns: training episodes, and greedy ones afterwards."""
    run_folder = storage.RunFolder(folder / case.name)
    seeds = storage.read_seeds(run_folder)
    curves = storage.read_metrics(run_folder)
    returns = seeds["episode/return"]
    is_last = returns.num_steps > (1 - LAST_SHARE) * returns.num_steps[-1]
    last = np.nanmean(returns.values[is_last], axis=0)
    greedy = seeds["eval/return"].values[-1]
    results = {
        "algorithm": case.config.algorithm,
        "env": case.config.env,
        "steps": int(returns.num_steps[-1]),
        "training_return": statistics(last),
        "greedy_return": statistics(greedy),
        "steps_per_second": float(np.median(curves["time/steps_per_second"].values)),
    }
    if "ratio/first_max_error" in curves:
        results["first_minibatch_ratio_error_max"] = float(np.max(curves["ratio/first_max_error"].values))
    return results


def statistics(values: np.ndarray) -> dict[str, Any]:
    """Seeds, mean, standard deviation, interquartile mean and its interval."""
    low, high = storage.bootstrap_interval(values)
    return {
        "seeds": values.tolist(),
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        "interquartile_mean": float(storage.interquartile_mean(values)),
        "interval": [float(low), float(high)],
    }


def table(results: dict[str, Any]) -> str:
    """Our scores and published ones as a Markdown table."""
    columns = ("environment", "algorithm", "steps", "seeds", "last tenth of training", "greedy (95 % interval)")
    lines = [f"| {' | '.join(columns)} | gymnax PPO | cleanrl |", "|---" * 8 + "|"]
    for row in results.values():
        training, greedy = row["training_return"], row["greedy_return"]
        interval = " to ".join(f"{end:.4g}" for end in greedy["interval"])
        theirs = GYMNAX.get(row["env"], "") if row["algorithm"] == "ppo" else ""
        cleanrl = CLEANRL.get((row["algorithm"], row["env"]), "")
        lines.append(
            f"| {row['env']} | {row['algorithm'].upper()} | {row['steps']:,} | {len(greedy['seeds'])} "
            f"| {training['mean']:.4g} ± {training['std']:.2g} "
            f"| {greedy['interquartile_mean']:.4g} ({interval}) | {theirs} | {cleanrl} |"
        )
    return "\n".join(lines) + "\n"


def plot(finished: list[Case], folder: Path, path: Path) -> None:
    """Return while training, a panel for each environment."""
    envs = list(dict.fromkeys(case.config.env for case in finished))
    columns = min(4, len(envs))
    rows = -(-len(envs) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(envs) :]:
        panel.set_axis_off()
    for panel, env in zip(panels, envs, strict=False):
        for case in finished:
            if case.config.env == env:
                name = case.config.algorithm
                seeds = storage.read_seeds(storage.RunFolder(folder / case.name))["episode/return"]
                storage.draw_seeds(panel, seeds, color=COLORS[name], label=name.upper())
        panel.set_title(env)
        panel.legend(fontsize=8)
    figure.suptitle("Return of training episodes: interquartile mean over seeds and its 95 % interval")
    figure.savefig(path, dpi=100)


def main(experiment: Experiment) -> None:
    """Run the missing cases, then report all finished ones."""
    folder = experiment.out.with_name(f"{experiment.out.name}-debug") if experiment.debug else experiment.out
    for case in cases(experiment):
        run(case, folder)
    everything = cases(experiment if experiment.debug else replace(experiment, only=("",)))
    finished = [case for case in everything if storage.RunFolder(folder / case.name).report_file.exists()]
    results = {case.name: summarize(case, folder) for case in finished}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "table.md").write_text(table(results))
    plot(finished, folder, folder / "curves.png")
    print(table(results))


if __name__ == "__main__":
    main(tyro.cli(Experiment))
