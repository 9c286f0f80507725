"""Plots of a run's metrics: one PNG per group of names in `metrics.jsonl`."""

import io
import math
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from jaxrl_lm.storage.metrics import Curve, read_metrics
from jaxrl_lm.storage.run_folder import RunFolder, write_atomically

GROUPS = {
    "reward": "Reward",
    "watched": "Rewards that are logged and not trained on",
    "episode": "Training episodes",
    "eval": "Evaluation episodes, greedy actions",
    "eval_sampled": "Evaluation episodes, actions as in training",
    "eval_train": "Episodes on training levels, greedy actions",
    "evaluation": "Evaluation on held-out examples",
    "kl": "KL divergence",
    "loss": "Losses",
    "ratio": "Probability ratio and clipping",
    "time": "Speed",
    "flops": "Operations of products",
    "energy": "Energy",
}
"""Titles of the groups shown first, in this order; others follow by name."""

STEPS = "steps/per_seed"
"""The x axis of environment runs; language model runs use updates."""

# Units by the end of a metric's name; the first match counts.
_UNITS_BY_SUFFIX = {
    "per_second": "per second",
    "seconds": "seconds",
    "minutes": "minutes",
    "fraction": "fraction",
    "entropy": "nats",
}
_UNITS_BY_GROUP = {
    "reward": "reward",
    "watched": "reward",
    "kl": "nats",
    "loss": "loss",
    "ratio": "ratio",
    "energy": "J",
}
_NO_UNIT = re.compile(r"(coef|coefficient|beta|target)$")

# Okabe and Ito's palette, distinct for colour-blind readers and in grey; then matplotlib's tab20.
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7F7F7F", "#BCBD22"),
    *("#98DF8A", "#C5B0D5", "#C49C94", "#F7B6D2", "#9EDAE5", "#AEC7E8"),
)
MAX_COLUMNS = 3
_SMOOTHED_ABOVE = 20  # points; shorter curves are not smoothed

Panels = dict[str, dict[str, Curve]]
"""Metrics of one group by name, each with curves by swept value ("" without a sweep)."""


def write_plots(folder: RunFolder) -> list[Path]:
    """Draw every group of metrics to `plots/GROUP.png`, one panel per metric.

    Values of a sweep, metrics named `NAME KEY=VALUE`, share the panel of NAME.

    Returns:
        Paths of the plots, in the order of `GROUPS`, then by name; empty without metrics.

    Raises:
        InputError: if `metrics.jsonl` is damaged.
    """
    curves = read_metrics(folder)
    steps = curves.get(STEPS)
    groups = _grouped({name: curve for name, curve in curves.items() if name != STEPS})
    if groups:
        folder.plots_folder.mkdir(exist_ok=True)
    paths = []
    for group, panels in groups.items():
        path = folder.plots_folder / f"{group}.png"
        write_atomically(path, _png(GROUPS.get(group, group), panels, steps))
        paths.append(path)
    return paths


def make_figure(num_panels: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with at most three panels per row and margins in inches that fit the labels.

    Margins are fixed because matplotlib's layout engines take as long as the drawing itself.
    """
    columns = min(num_panels, MAX_COLUMNS)
    rows = math.ceil(num_panels / columns)
    width, height = max(4.4 * columns, 6.0), 3.0 * rows + 0.5
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontweight="bold", y=1 - 0.12 / height, va="top")
    figure.subplots_adjust(
        *(0.8 / width, 0.6 / height, 1 - 0.2 / width, 1 - 0.8 / height), wspace=0.8 / 3.4, hspace=1.0 / 2.1
    )
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in panels[num_panels:]:
        unused.set_axis_off()
    return figure, panels[:num_panels]


def finish_panel(panel: Axes, *, title: str, x_label: str, y_label: str = "") -> None:
    """Set titles, a light grid, and plain tick labels (no offset, no common factor)."""
    # Metric names are plain text: a dollar sign must not start a formula.
    panel.set_title("".join(c if c.isprintable() else "?" for c in title), fontsize=10, parse_math=False)
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    panel.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if panel.get_legend_handles_labels()[1]:
        panel.legend(fontsize=7)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def running_mean(values: Float[np.ndarray, " N"], window: int) -> Float[np.ndarray, " N"]:
    """Mean over a centred window, truncated at both ends; NaNs are ignored.

    mean_i = (sum of values_j over |j - i| <= window // 2) / (count of those that are numbers)

    Args:
        values: the curve.
        window: width in points, odd.

    Returns:
        The means; NaN where the window has only NaNs.
    """
    half = window // 2
    is_number = ~np.isnan(values)
    # A convolution, because differences of running sums would carry the rounding error of a huge value along.
    box = np.ones(2 * half + 1)
    inside = slice(half, half + len(values))
    sums = np.convolve(np.where(is_number, values, 0.0), box)[inside]
    counts = np.convolve(is_number.astype(np.float64), box)[inside]
    return np.where(counts > 0.5, sums / np.maximum(counts, 1.0), np.nan)


def _grouped(curves: dict[str, Curve]) -> dict[str, Panels]:
    found: dict[str, Panels] = {}
    for name, curve in curves.items():
        base, _, label = name.partition(" ")
        group, slash, _ = base.partition("/")
        # The group becomes a file name.
        if slash and re.fullmatch(r"\w[\w-]*", group) and not np.isnan(curve.values).all():
            found.setdefault(group, {}).setdefault(base, {})[label] = curve
    order = [*(group for group in GROUPS if group in found), *sorted(found.keys() - GROUPS.keys())]
    return {group: found[group] for group in order}


def _png(title: str, panels: Panels, steps: Curve | None) -> bytes:
    figure, axes = make_figure(len(panels), title)
    for index, (panel, (name, curves)) in enumerate(zip(axes, panels.items(), strict=True)):
        windows = [
            _draw(panel, curve, steps, COLORS[(index if len(curves) == 1 else number) % len(COLORS)], label)
            for number, (label, curve) in enumerate(curves.items())
        ]
        unit = "updates" if steps is None else "environment steps per seed"
        note = f" (bold: mean of {max(windows)})" if max(windows) > 1 else ""
        finish_panel(panel, title=name.partition("/")[2], x_label=unit + note, y_label=_unit(name))
    return to_png(figure)


def _draw(panel: Axes, curve: Curve, steps: Curve | None, color: str, label: str) -> int:
    """Draw a curve, smoothed if it has many points; returns the width of the smoothing window."""
    x = curve.steps if steps is None else np.interp(curve.steps, steps.steps, steps.values)
    if len(x) <= _SMOOTHED_ABOVE:
        panel.plot(x, curve.values, color=color, linewidth=1.4, marker="o", markersize=3.5, label=label or None)
        return 1
    window = max(5, len(x) // 20) | 1  # odd, to have a centre
    panel.plot(x, curve.values, color=color, linewidth=0.7, alpha=0.35)
    panel.plot(x, running_mean(curve.values, window), color=color, linewidth=1.8, label=label or None)
    return window


def _unit(name: str) -> str:
    if _NO_UNIT.search(name):
        return ""
    for suffix, unit in _UNITS_BY_SUFFIX.items():
        if name.endswith(suffix):
            return unit
    return _UNITS_BY_GROUP.get(name.partition("/")[0], "")
