"""`jaxrl-lm train ALGORITHM`, `evaluate` and `report`: train in an environment, and look at what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_lm import storage
from jaxrl_lm.algorithms.dqn import make_dqn
from jaxrl_lm.algorithms.environment_ppo import make_environment_ppo
from jaxrl_lm.algorithms.pqn import make_pqn
from jaxrl_lm.algorithms.tabular import make_tabular
from jaxrl_lm.cli.config_file import expand_config_file
from jaxrl_lm.cli.console import print_text
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.environment import MakeLearner, train_environment
from jaxrl_lm.training.environment_config import (
    TrainDoubleQConfig,
    TrainDQNConfig,
    TrainExpectedSarsaConfig,
    TrainPPOConfig,
    TrainPQNConfig,
    TrainQLambdaConfig,
    TrainQLearningConfig,
    TrainSarsaConfig,
)
from jaxrl_lm.training.evaluate_run import evaluate_run

TRAINERS: dict[str, tuple[type, MakeLearner]] = {
    "q-learning": (TrainQLearningConfig, make_tabular),
    "double-q": (TrainDoubleQConfig, make_tabular),
    "sarsa": (TrainSarsaConfig, make_tabular),
    "expected-sarsa": (TrainExpectedSarsaConfig, make_tabular),
    "q-lambda": (TrainQLambdaConfig, make_tabular),
    "dqn": (TrainDQNConfig, make_dqn),
    "pqn": (TrainPQNConfig, make_pqn),
    "ppo": (TrainPPOConfig, make_environment_ppo),
}

_SHOWN = ("episode/return", "episode/length", "eval/return", "eval/solved", "eval/oracle_share", "eval/regret")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Play whole greedy episodes with the newest checkpoint of a run in an environment.

    Attributes:
        run: folder of the run.
        env_options: KEY=VALUE each, in place of the run's own, such as generator=wilson.
        episodes: of each seed; for generated mazes so many levels that training never met.
        seed: of levels and episodes.
    """

    run: str
    env_options: tuple[str, ...] = ()
    episodes: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw a run's plots and report again, of a run that goes on or was stopped.

    Attributes:
        run: folder of the run.
    """

    run: str


def run_evaluate(config: EvaluateConfig) -> None:
    """Print interquartile mean and interval over the seeds of a run."""
    if config.episodes < 1:
        raise InputError(f"episodes={config.episodes} must be at least 1")
    trained, make_learner = _started_with(config.run)
    metrics = evaluate_run(
        trained, make_learner, env_options=config.env_options, num_episodes=config.episodes, seed=config.seed
    )
    table = Table("", "interquartile mean", "95 % interval", title=f"{config.run}: {config.episodes} episodes a seed")
    for label, rows in trained.sweep_columns():
        for name, all_values in metrics.items():
            values = np.asarray(all_values[rows], np.float64)
            if np.isfinite(values).all():
                low, high = storage.bootstrap_interval(values)
                interval = f"{low:.4g} to {high:.4g}" if len(values) > 1 else "one seed"
                table.add_row(name + label, f"{storage.interquartile_mean(values):.4g}", interval)
    Console().print(table)


def run_report(config: ReportConfig) -> None:
    """Write the report and say where it is."""
    folder = storage.RunFolder(Path(config.run))
    folder.read_config()
    storage.write_report(folder, title=folder.path.name)
    print_text(f"report: {folder.report_file}", soft_wrap=True)


def _started_with(run: str) -> tuple[Any, MakeLearner]:
    """Settings and algorithm of a run, from its config.yaml."""
    folder = storage.RunFolder(Path(run))
    saved = folder.read_config()
    name = saved.get("algorithm", saved.get("kind"))
    if name not in TRAINERS:
        raise InputError(
            f"run={run!r} was not made by jaxrl-lm train, so there is nothing to evaluate in an environment"
        )
    config = _parse([name, f"--config={folder.config_file}", f"--out={run}"])
    return config, TRAINERS[name][1]


def parse_train(args: list[str]) -> Callable[[], None]:
    """What `jaxrl-lm train` with these arguments is to do; prints help or the mistake and exits where there is one."""
    config = _parse(args)
    make_learner = next(make for kind, make in TRAINERS.values() if isinstance(config, kind))
    return lambda: print_result(train_environment(config, make_learner))


def _parse(args: list[str]) -> Any:
    return tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in TRAINERS.items()},
        args=expand_config_file(args),
        prog="jaxrl-lm train",
        description="Train an algorithm in an environment; ids: jaxrl_lm.envs.list_ids().",
    )


def print_result(folder: storage.RunFolder) -> None:
    """First and last metrics of a run, and its files."""
    curves = storage.read_metrics(folder)
    table = Table("", "first", "last")
    for shown in _SHOWN:
        for name, curve in curves.items():
            if name.partition(" ")[0] == shown and len(curve.values):
                table.add_row(name, f"{curve.values[0]:.4g}", f"{curve.values[-1]:.4g}")
    console = Console()
    console.print(table)
    print_text(f"metrics, plots and report: {folder.path}", console=console, soft_wrap=True)
