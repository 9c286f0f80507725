"""Pictures of a run's metrics: one PNG for each group of names in `metrics.jsonl`."""

import io
import math
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxrl_lm.storage.metrics import Curve, read_metrics
from jaxrl_lm.storage.run_folder import RunFolder, write_atomically

GROUPS = {
    "reward": "Reward",
    "judge": "Judges, whose rewards are not learned from",
    "kl": "KL divergence",
    "loss": "Losses",
    "ratio": "Probability ratio and clipping",
    "time": "Speed",
}
"""Titles of the groups that come first, in this order; others follow by name."""

# By the end of a metric's name; the first that fits.
_UNITS_BY_SUFFIX = {
    "_per_second": "per second",
    "seconds": "seconds",
    "minutes": "minutes",
    "fraction": "fraction",
    "entropy": "nats",
}
_UNITS_BY_GROUP = {"reward": "reward", "judge": "reward", "kl": "nats", "loss": "loss", "ratio": "ratio"}
_NO_UNIT = re.compile(r"(coef|coefficient|beta|target)$")

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MAX_COLUMNS = 3
_SMOOTHED_ABOVE = 20  # points; fewer are drawn as they are


def write_plots(folder: RunFolder) -> list[Path]:
    """Draw every group of metrics into `plots/GROUP.png`, a panel for each metric.

    Returns:
        The pictures, in the order of `GROUPS`, then by name; none if there are no metrics.

    Raises:
        InputError: if `metrics.jsonl` is damaged.
    """
    groups = _grouped(read_metrics(folder))
    if groups:
        folder.plots_folder.mkdir(exist_ok=True)
    paths = []
    for group, curves in groups.items():
        path = folder.plots_folder / f"{group}.png"
        write_atomically(path, _png(GROUPS.get(group, group), curves))
        paths.append(path)
    return paths


def running_mean(values: Float[np.ndarray, " N"], window: int) -> Float[np.ndarray, " N"]:
    """Mean over a centred window, cut off at both ends; NaNs are left out.

    mean_i = (sum of values_j over |j - i| <= window // 2) / (count of those that are numbers)

    Args:
        values: the curve.
        window: its width, points, odd.

    Returns:
        The means; NaN where the window holds no number.
    """
    half = window // 2
    is_number = ~np.isnan(values)
    # A convolution, not differences of running sums: those would carry the rounding of one huge value along.
    box = np.ones(2 * half + 1)
    inside = slice(half, half + len(values))
    sums = np.convolve(np.where(is_number, values, 0.0), box)[inside]
    counts = np.convolve(is_number.astype(np.float64), box)[inside]
    return np.where(counts > 0.5, sums / np.maximum(counts, 1.0), np.nan)


def _grouped(curves: dict[str, Curve]) -> dict[str, dict[str, Curve]]:
    found: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        group, slash, _ = name.partition("/")
        # The group becomes a file's name.
        if slash and re.fullmatch(r"\w[\w-]*", group) and not np.isnan(curve.values).all():
            found.setdefault(group, {})[name] = curve
    order = [*(group for group in GROUPS if group in found), *sorted(found.keys() - GROUPS.keys())]
    return {group: found[group] for group in order}


def _png(title: str, curves: dict[str, Curve]) -> bytes:
    columns = min(len(curves), _MAX_COLUMNS)
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(max(4.2 * columns, 6.0), 2.9 * rows + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontweight="bold")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, (name, curve) in enumerate(curves.items()):
        _draw(panels[index], name, curve, COLORS[index % len(COLORS)])
    for unused in panels[len(curves) :]:
        unused.set_axis_off()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(panel: Axes, name: str, curve: Curve, color: str) -> None:
    label = "update"
    if len(curve.values) > _SMOOTHED_ABOVE:
        window = max(5, len(curve.values) // 20) | 1  # odd, so that it has a centre
        panel.plot(curve.steps, curve.values, color=color, linewidth=0.7, alpha=0.35)
        panel.plot(curve.steps, running_mean(curve.values, window), color=color, linewidth=1.8)
        label = f"update (thick line: mean of {window})"
    else:
        panel.plot(curve.steps, curve.values, color=color, linewidth=1.4, marker="o", markersize=3.5)
    # A metric's name is plain text: a dollar sign in it starts no formula.
    title = "".join(character if character.isprintable() else "?" for character in name.partition("/")[2])
    panel.set_title(title, fontsize=10, parse_math=False)
    panel.set_xlabel(label)
    panel.set_ylabel(_unit(name))
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panel.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _unit(name: str) -> str:
    if _NO_UNIT.search(name):
        return "value"
    for suffix, unit in _UNITS_BY_SUFFIX.items():
        if name.endswith(suffix):
            return unit
    return _UNITS_BY_GROUP.get(name.partition("/")[0], "value")
