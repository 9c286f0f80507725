"""Learning curves over seeds: interquartile means and bootstrap intervals.

Reference: Agarwal et al., 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from jaxrl_lm.storage.plots import COLORS, finish_panel, make_figure, to_png
from jaxrl_lm.storage.run_folder import (
    RunFolder,
    finite_number,
    line_error,
    read_jsonl,
    whole_number,
    write_atomically,
)

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
_MARKED_UP_TO = 20  # points drawn with markers: a single point has no line
_MAX_POINTS = 500  # per curve: its bootstrap takes 16 kB per point and seed


class SeedCurves(NamedTuple):
    """One metric of all seeds over a run.

    Attributes:
        num_steps: environment steps per seed, `[N]`.
        values: `[N, S]`; NaN where a seed has no value.
    """

    num_steps: Int[np.ndarray, " N"]
    values: Float[np.ndarray, "N S"]


def read_seeds(folder: RunFolder) -> dict[str, SeedCurves]:
    """Read `seeds.jsonl` as curves by name; empty if the file is missing.

    Raises:
        InputError: if a line is damaged.
    """
    if not folder.seeds_file.exists():
        return {}
    points: dict[str, list[tuple[int, list[float]]]] = {}
    for number, record in enumerate(read_jsonl(folder.seeds_file), start=1):
        for name, values in record.items():
            if name in ("step", "num_steps"):
                continue
            rows = points.setdefault(name, [])
            num_steps = whole_number(folder.seeds_file, number, "num_steps", record.get("num_steps"))
            rows.append((num_steps, _row(folder, number, name, values, len(rows[0][1]) if rows else None)))
    return {
        name: SeedCurves(np.array([n for n, _ in rows], np.int64), np.array([row for _, row in rows], np.float64))
        for name, rows in points.items()
    }


def interquartile_mean(values: Float[np.ndarray, "*N S"]) -> Float[np.ndarray, "*N"]:
    """Mean of the middle half of the seeds (last axis)."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=-1), np.float64)


def bootstrap_interval(values: Float[np.ndarray, "*N S"]) -> tuple[Float[np.ndarray, "*N"], Float[np.ndarray, "*N"]]:
    """Percentile bootstrap interval of the interquartile mean: 2,000 resamples of the seeds, with a fixed random seed.

    Args:
        values: seeds on the last axis.

    Returns:
        The bounds of the 95 % interval.
    """
    drawn = np.random.default_rng(0).integers(0, values.shape[-1], (_NUM_RESAMPLES, values.shape[-1]))
    means = interquartile_mean(values[..., drawn])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=-1)
    return np.asarray(low), np.asarray(high)


def write_seed_plots(folder: RunFolder) -> list[Path]:
    """Draw `plots/seeds.png`: each metric's interquartile mean over seeds, its interval, and the individual seeds.

    Values of a sweep, `NAME KEY=VALUE`, share the panel of NAME.

    Returns:
        The path of the plot in a list; empty for a single seed or without values.
    """
    groups: dict[str, dict[str, SeedCurves]] = {}
    for name, curve in read_seeds(folder).items():
        base, _, label = name.partition(" ")
        if label or curve.values.shape[1] > 1:
            groups.setdefault(base, {})[label] = curve
    if not groups:
        return []
    folder.plots_folder.mkdir(exist_ok=True)
    figure, panels = make_figure(len(groups), f"Interquartile mean over seeds, {CONFIDENCE:.0%} bootstrap interval")
    for panel, (name, curves) in zip(panels, groups.items(), strict=True):
        panel.set_title(name)
        for number, (label, curve) in enumerate(curves.items()):
            draw_seeds(panel, curve, color=COLORS[number % len(COLORS)], label=label or None)
    path = folder.plots_folder / "seeds.png"
    write_atomically(path, to_png(figure))
    return [path]


def draw_seeds(panel: Any, curve: SeedCurves, *, color: str, label: str | None = None) -> None:
    """Draw one metric in a panel, at up to 500 steps, each over the seeds that have a value there."""
    kept = np.flatnonzero(~np.isnan(curve.values).all(axis=1))
    if len(kept) > _MAX_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, _MAX_POINTS).astype(int)]
    num_steps, values = curve.num_steps[kept], curve.values[kept]
    marker = {"marker": "o", "markersize": 3.5} if len(num_steps) <= _MARKED_UP_TO else {}
    panel.plot(num_steps, values, color=color, linewidth=0.5, alpha=0.25)
    if len(num_steps):
        means, low, high = _over_known_seeds(values)
        panel.fill_between(num_steps, low, high, color=color, alpha=0.25, linewidth=0)
        panel.plot(num_steps, means, color=color, linewidth=1.8, label=label, **marker)
    finish_panel(panel, title=panel.get_title(), x_label="environment steps per seed")


def _over_known_seeds(values: Float[np.ndarray, "N S"]) -> Float[np.ndarray, "3 N"]:
    """Interquartile mean and bounds of its interval in each row, over the seeds that have a value there."""
    is_known = ~np.isnan(values)
    found = np.empty((3, len(values)))
    for seeds in np.unique(is_known, axis=0):  # rows of the same seeds together
        rows = (is_known == seeds).all(axis=1)
        of_known = values[rows][:, seeds]
        found[:, rows] = interquartile_mean(of_known), *bootstrap_interval(of_known)
    return found


def _row(folder: RunFolder, number: int, name: str, values: Any, size: int | None) -> list[float]:
    """Values of all seeds, as many as on earlier lines."""
    if not isinstance(values, list) or len(values) != (len(values) if size is None else size):
        many = "" if size is None else f"{size} "
        raise line_error(folder.seeds_file, number, f"{name} is {values!r:.60}, not a list of {many}numbers")
    return [finite_number(folder.seeds_file, number, name, value) for value in values]
