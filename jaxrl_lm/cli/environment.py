"""`jaxrl-lm train ALGORITHM`: train in an environment."""

from collections.abc import Callable
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_lm import storage
from jaxrl_lm.algorithms.dqn import make_dqn
from jaxrl_lm.algorithms.environment_ppo import make_environment_ppo
from jaxrl_lm.algorithms.pqn import make_pqn
from jaxrl_lm.algorithms.tabular import make_tabular
from jaxrl_lm.cli.config_file import expand_config_file
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


def parse_train(args: list[str]) -> Callable[[], None]:
    """What `jaxrl-lm train` with these arguments is to do; prints help or the mistake and exits where there is one."""
    config: Any = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in TRAINERS.items()},
        args=expand_config_file(args),
        prog="jaxrl-lm train",
        description="Train an algorithm in an environment; ids: jaxrl_lm.envs.list_ids().",
    )
    make_learner = next(make for kind, make in TRAINERS.values() if isinstance(config, kind))
    return lambda: print_result(train_environment(config, make_learner))


def print_result(folder: storage.RunFolder) -> None:
    """First and last metrics of a run, and its files."""
    curves = storage.read_metrics(folder)
    table = Table("", "first", "last")
    for name in _SHOWN:
        values = curves[name].values if name in curves else []
        if len(values):
            table.add_row(name, f"{values[0]:.4g}", f"{values[-1]:.4g}")
    console = Console()
    console.print(table)
    console.print(f"metrics, plots and report: {folder.path}", soft_wrap=True)
