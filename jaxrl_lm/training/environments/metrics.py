"""From the numbers of every learner to those of a record: by seed, by swept value, without what has diverged."""

from typing import Any

import numpy as np

from jaxrl_lm.storage import Score
from jaxrl_lm.training.environments.config import EnvironmentRunConfig

EVAL_GROUPS = ("eval", "eval_train", "eval_sampled")
SHOWN = ("episode/return", "eval/return", "eval/solved", "eval_train/solved")
"""Metrics on the progress line, as far as a run has them."""
_PER_SEED = ("episode/return", "episode/length")
_PER_SEED_EVAL = ("return", "solved", "oracle_share", "regret", "distinct_levels", "distinct_layouts")


def is_bad(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """Which learners have a loss that is not finite, bool `[V * S]`."""
    losses = [values for name, values in metrics.items() if name.startswith(("loss/", "kl/"))]
    return np.any([~np.isfinite(values) for values in losses], axis=0)


def without_diverged(metrics: dict[str, np.ndarray], is_diverged: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers with NaN for learners that have diverged, which say nothing."""
    return {name: np.where(is_diverged, np.nan, values) for name, values in metrics.items()}


def say_diverged(config: EnvironmentRunConfig, is_new: np.ndarray, num_steps: int) -> list[str]:
    """A sentence for each learner that has just diverged."""
    lines = []
    for label, rows in config.sweep_columns():
        for seed in np.flatnonzero(is_new[rows]):
            of_point = f" with{label}" if label else ""
            lines.append(
                f"seed {seed} of {config.num_seeds}{of_point} has diverged: its loss is not finite after {num_steps:,} "
                "steps; the others continue, and its numbers are left out"
            )
    return lines


def by_seed(config: EnvironmentRunConfig, metrics: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Numbers of every seed for learning curves; null where a seed has none."""
    names = [*_PER_SEED, *(f"{group}/{name}" for group in EVAL_GROUPS for name in _PER_SEED_EVAL)]
    return {
        name + label: [_number(value) for value in metrics[name][rows]]
        for name in names
        for label, rows in config.sweep_columns()
        if name in metrics and not _is_void(name, metrics[name])
    }


def by_value(config: EnvironmentRunConfig, metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over seeds, for each point of the sweep; a point that has diverged is left out while others continue."""
    numbers: dict[str, float] = {}
    for name, values in metrics.items():
        if _is_void(name, values):
            continue
        means = {name + label: _mean(values[rows]) for label, rows in config.sweep_columns()}
        finite = {label: mean for label, mean in means.items() if np.isfinite(mean)}
        numbers |= finite or means
    return numbers


def best_return(config: EnvironmentRunConfig, numbers: dict[str, float]) -> Score | None:
    """Score of a checkpoint; None without an evaluation.

    Its value is `eval/return`, the mean over the seeds that have not diverged; of a sweep that of its best value. Means
    over different seeds are not comparable, so the comparison starts again when a seed has diverged.

    Args:
        config: the run's settings.
        numbers: those of `by_value`, and `seeds/diverged` if some have.
    """
    returns = [numbers.get(f"eval/return{label}", float("nan")) for label, _ in config.sweep_columns()]
    known = [value for value in returns if np.isfinite(value)]
    return Score(max(known), comparison=int(numbers.get("seeds/diverged", 0))) if known else None


def _is_void(name: str, values: np.ndarray) -> bool:
    """Whether an evaluation has no such number, as the share of the oracle's return where that is negative."""
    return name.partition("/")[0] in EVAL_GROUPS and bool(np.isnan(values).all())


def _mean(values: np.ndarray) -> float:
    """Mean over the learners that have a number: episodes may end in some alone, and some may have diverged."""
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if known.size else float("nan")


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
