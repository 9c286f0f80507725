"""`jaxrl-lm train ALGORITHM`, `evaluate` and `report`: train in an environment, and show the results."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrl_lm import checks, storage
from jaxrl_lm.cli.console import print_text, result_console
from jaxrl_lm.cli.settings import EvaluateConfig, ReportConfig
from jaxrl_lm.training.environments.agent import load_settings
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.training.environments.evaluate import evaluate_run
from jaxrl_lm.training.environments.metrics import EVAL_GROUPS
from jaxrl_lm.training.environments.small_model import SmallModelConfig, write_small_model
from jaxrl_lm.training.environments.train import train_environment

_SHOWN = ("return", "length", "solved", "oracle_share", "regret", "distinct_levels", "distinct_layouts")


def run_train(config: EnvironmentRunConfig) -> None:
    """Train, and print the results."""
    print_result(train_environment(config))


def run_init_model(config: SmallModelConfig) -> None:
    """Write a small model."""
    print_text(f"written: {write_small_model(config)}", soft_wrap=True)


def run_evaluate(config: EvaluateConfig) -> None:
    """Print interquartile mean and interval over the seeds of a run."""
    checks.at_least(config, 1, "episodes")
    checks.seed(config.seed)
    trained = load_settings(config.run)
    found = evaluate_run(
        trained,
        env_options=config.env_options,
        num_episodes=config.episodes,
        seed=config.seed,
        checkpoint=config.checkpoint,
    )
    table = Table("", "interquartile mean", "95 % interval")
    for label, rows in trained.sweep_columns():
        for name, all_values in found.metrics.items():
            values = np.asarray(all_values[rows], np.float64)
            known = values[np.isfinite(values)]
            if known.size:
                table.add_row(name + label, f"{storage.interquartile_mean(known):.4g}", _interval(known, len(values)))
    which = f"{config.checkpoint} checkpoint" if isinstance(config.checkpoint, str) else "checkpoint"
    place = f"(chunk {found.num_chunks}, {found.num_steps:,} steps)"
    print_text(f"{config.run}, {which} {place}: {config.episodes} episodes per seed", soft_wrap=True)
    Console().print(table)


def _interval(known: np.ndarray, num_seeds: int) -> str:
    """Interval over the seeds that have a number, and how many have none."""
    missing = f" ({num_seeds - len(known)} of {num_seeds} seeds diverged)" if len(known) < num_seeds else ""
    if len(known) == 1:
        return f"one seed{missing}"
    low, high = storage.bootstrap_interval(known)
    return f"{low:.4g} to {high:.4g}{missing}"


def run_report(config: ReportConfig) -> None:
    """Write the report and say where it is."""
    folder = storage.RunFolder(Path(config.run))
    folder.read_config()
    storage.write_report(folder, title=folder.path.name)
    print_text(f"report: {folder.report_file}", soft_wrap=True)


def print_result(folder: storage.RunFolder) -> None:
    """First and last metrics of a run, and its files."""
    curves = storage.read_metrics(folder)
    table = Table("", "first", "last")
    for name, curve in curves.items():
        group, _, rest = name.partition("/")
        known = curve.values[np.isfinite(curve.values)]
        if group in ("episode", *EVAL_GROUPS) and rest.partition(" ")[0] in _SHOWN and len(known):
            table.add_row(name, f"{known[0]:.4g}", f"{known[-1]:.4g}")
    console = result_console()
    console.print(table)
    print_text(f"metrics, plots and report: {folder.path}", console=console, soft_wrap=True)
