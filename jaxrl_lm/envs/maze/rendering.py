"""Pictures of mazes: a level with values, policy and path; an episode as an animation; text for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure

from jaxrl_lm.envs.maze.grid import DIRECTIONS, NUM_MOVES, LevelBank
from jaxrl_lm.errors import InputError

_WALL, _FLOOR, _INK = "#2F3542", "#FBFAF6", "#20242C"
# Okabe and Ito's palette, which colour-blind readers can distinguish.
_START, _GOAL, _AGENT, _PATH = "#00568A", "#009E73", "#D55E00", "#CC79A7"
# No colour as dark as walls and arrows.
_VALUES = ("#FBF7E2", "#CDE8C6", "#86CDC0", "#4AA6C4")
_LAST_FRAME_SECONDS = 1.5
_FILM_DPI = 80


def draw_level(
    bank: LevelBank,
    level: int,
    width: int,
    *,
    position: int | None = None,
    values: Float[Array, " C"] | Float[np.ndarray, " C"] | None = None,
    policy: Int[Array, " C"] | Int[np.ndarray, " C"] | Float[Array, "C A"] | Float[np.ndarray, "C A"] | None = None,
    path: Sequence[int] | Int[Array, " N"] | Int[np.ndarray, " N"] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw a level: walls, start and goal, and whatever else is given.

    Args:
        bank: the levels.
        level: row of the bank.
        width: columns of the grid.
        position: the agent's cell.
        values: a number for each cell, shown as a heat map with a colour bar; NaN is left blank, walls are ignored.
        policy: an action for each cell, or probabilities of the four, drawn as arrows as long as they are likely.
        path: cells in the order in which they were visited.
        axes: where to draw; None for a figure of its own, with a legend.

    Returns:
        The figure drawn on; nothing is shown or saved.

    Raises:
        InputError: for a level or a cell that does not exist, or a width that does not divide the cells.
    """
    is_wall, start, goal = _read(bank, level, width)
    figure, panel = _canvas(is_wall, values is not None) if axes is None else (axes.get_figure(root=True), axes)
    assert isinstance(figure, Figure)
    size = _marker_points(figure, is_wall)
    _draw_floor(panel, is_wall)
    if values is not None:
        _draw_values(figure, panel, is_wall, np.asarray(values, np.float64).reshape(is_wall.shape))
    if policy is not None:
        _draw_policy(panel, is_wall, goal, _move_lengths(np.asarray(policy)), is_greedy=np.ndim(policy) == 1)
    if path is not None:
        _draw_path(panel, _places("path", np.asarray(path, np.int64), is_wall), size)
    _mark(panel, _places("start", np.array([start]), is_wall), "s", _START, 0.50 * size, "start")
    _mark(panel, _places("goal", np.array([goal]), is_wall), "*", _GOAL, 0.85 * size, "goal")
    if position is not None:
        _mark(panel, _places("position", np.array([position]), is_wall), "o", _AGENT, 0.55 * size, "agent")
    if axes is None:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=11, handletextpad=0.7)
    return figure


def animate_episode(
    bank: LevelBank,
    level: int,
    width: int,
    positions: Sequence[int] | Int[Array, " N"] | Int[np.ndarray, " N"],
    file: str | Path,
    *,
    frames_per_second: int = 8,
    values: Float[Array, " C"] | Float[np.ndarray, " C"] | None = None,
) -> Path:
    """Write an episode as an animation, a frame for each cell that the agent stood on.

    Args:
        bank: the levels.
        level: row of the bank.
        width: columns of the grid.
        positions: the agent's cells, the start first.
        file: ends in `.gif`, or in `.mp4` (needs the program ffmpeg).
        frames_per_second: steps of the agent a second.
        values: a heat map behind it, as in `draw_level`.

    Returns:
        The file.

    Raises:
        InputError: as `draw_level` does, and for another ending, a missing folder, no positions, or no ffmpeg.
    """
    target = Path(file)
    writer = _writer(target, frames_per_second)
    cells = np.asarray(positions, np.int64)
    if cells.size == 0:
        raise InputError("positions is empty; give at least the cell where the episode starts")
    is_wall, _, _ = _read(bank, level, width)
    places = _places("positions", cells, is_wall)
    figure = draw_level(bank, level, width, position=int(cells[0]), values=values, path=cells[:1])
    _film(figure, places, writer, target, frames_per_second)
    return target


def as_text(bank: LevelBank, level: int, width: int, position: int | None = None) -> str:
    """A level as lines of text, two columns a cell.

    Blocks are walls, a circle is the start, a star the goal, a disc the agent.

    Args:
        bank: the levels.
        level: row of the bank.
        width: columns of the grid.
        position: the agent's cell; drawn over start and goal.

    Raises:
        InputError: as `draw_level` does.
    """
    is_wall, start, goal = _read(bank, level, width)
    cells = np.where(is_wall, "██", "  ").ravel()
    marks = [("start", start, "○ "), ("goal", goal, "★ ")] + (
        [] if position is None else [("position", position, "● ")]
    )
    for name, cell, mark in marks:
        _places(name, np.array([cell]), is_wall)
        cells[cell] = mark
    return "\n".join("".join(row) for row in cells.reshape(is_wall.shape))


def _read(bank: LevelBank, level: int, width: int) -> tuple[np.ndarray, int, int]:
    """Walls `[H, W]`, start and goal of a level."""
    # Checked here, since JAX's own indexing silently clips to the nearest level.
    if not 0 <= level < bank.num_levels:
        raise InputError(f"level={level} must be in 0..{bank.num_levels - 1}, the levels of this bank")
    num_cells = bank.moves.shape[1]
    if width < 1 or num_cells % width:
        raise InputError(f"width={width} must divide the {num_cells} cells of a level")
    moves, start, goal = jax.device_get((bank.moves[level], bank.starts[level], bank.goals[level]))
    return (moves == 0).reshape(-1, width), int(start), int(goal)


def _places(name: str, cells: np.ndarray, is_wall: np.ndarray) -> np.ndarray:
    """Column and row of cells, `[N, 2]`."""
    outside = cells[(cells < 0) | (cells >= is_wall.size)]
    if outside.size:
        raise InputError(f"{name} names cell {outside[0]}, but cells run from 0 to {is_wall.size - 1}")
    rows, columns = np.divmod(cells, is_wall.shape[1])
    return np.stack([columns, rows], axis=-1)


def _canvas(is_wall: np.ndarray, has_bar: bool) -> tuple[Figure, Axes]:
    height, width = is_wall.shape
    cell = 6.0 / max(height, width)  # inches
    size = max(cell * width, 3.2) + (1.1 if has_bar else 0.2), max(cell * height, 0.6) + 0.6
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _marker_points(figure: Figure, is_wall: np.ndarray) -> float:
    """Width of a cell in points, roughly; a figure of many panels has smaller cells."""
    width, height = figure.get_size_inches()
    panels = max(len(figure.axes), 1)
    return float(min(72 * min(width / is_wall.shape[1], height / is_wall.shape[0]) / np.sqrt(panels), 40.0))


def _draw_floor(panel: Axes, is_wall: np.ndarray) -> None:
    panel.imshow(is_wall, cmap=ListedColormap([_FLOOR, _WALL]), vmin=0, vmax=1, interpolation="nearest")
    panel.set_aspect("equal")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


def _draw_values(figure: Figure, panel: Axes, is_wall: np.ndarray, values: np.ndarray) -> None:
    shown = np.ma.masked_where(is_wall | np.isnan(values), values)
    if not shown.count():
        return
    colours = LinearSegmentedColormap.from_list("values", _VALUES)
    image = panel.imshow(shown, cmap=colours, interpolation="nearest")
    bar = figure.colorbar(image, ax=panel, shrink=0.9, aspect=30, pad=0.02)
    bar.set_label("value", fontsize=11)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] a Spine; its stub says otherwise


def _move_lengths(policy: np.ndarray) -> np.ndarray:
    """Length of each arrow, cells `[C, A]`: a greedy arrow spans its cell, likely moves point from its middle."""
    if policy.ndim == 2:
        return 0.44 * policy
    unknown = policy[(policy < 0) | (policy >= NUM_MOVES)]
    if unknown.size:
        raise InputError(f"policy holds the action {unknown[0]}, but actions run from 0 to {NUM_MOVES - 1}")
    return 0.66 * np.eye(NUM_MOVES)[policy]


def _draw_policy(panel: Axes, is_wall: np.ndarray, goal: int, lengths: np.ndarray, *, is_greedy: bool) -> None:
    is_shown = ~is_wall.ravel()
    is_shown[goal] = False
    rows, columns = np.divmod(np.flatnonzero(is_shown), is_wall.shape[1])
    for (down, right), length in zip(DIRECTIONS, lengths[is_shown].T, strict=True):
        is_drawn = length > 0.02
        panel.quiver(
            columns[is_drawn],
            rows[is_drawn],
            right * length[is_drawn],
            down * length[is_drawn],
            color=_INK,
            pivot="mid" if is_greedy else "tail",
            angles="xy",
            scale_units="xy",
            scale=1,
            units="xy",
            width=0.07 if is_greedy else 0.05,
            headwidth=4.5,
            headlength=4,
            headaxislength=3.6,
            minlength=0,
            zorder=3,
        )


def _draw_path(panel: Axes, places: np.ndarray, size: float) -> None:
    panel.plot(
        places[:, 0],
        places[:, 1],
        color=_PATH,
        linewidth=0.38 * size,
        alpha=0.75,
        solid_capstyle="round",
        solid_joinstyle="round",
        label="path",
        zorder=2,
    )


def _mark(panel: Axes, places: np.ndarray, marker: str, color: str, points: float, label: str) -> None:
    panel.plot(
        places[:, 0],
        places[:, 1],
        linestyle="none",
        marker=marker,
        markersize=points,
        markerfacecolor=color,
        markeredgecolor="white",
        markeredgewidth=max(0.06 * points, 0.5),
        label=label,
        zorder=5,
    )


def _writer(target: Path, frames_per_second: int) -> AbstractMovieWriter:
    kinds: dict[str, Any] = {".gif": PillowWriter, ".mp4": FFMpegWriter}
    kind = kinds.get(target.suffix.lower())
    if kind is None:
        raise InputError(f"file={target} must end in .gif or .mp4")
    if frames_per_second < 1:
        raise InputError(f"frames_per_second={frames_per_second} must be at least 1")
    if not target.absolute().parent.is_dir():
        raise InputError(f"file={target}: its folder does not exist; make it first")
    if not kind.isAvailable():
        raise InputError(f"file={target}: .mp4 needs the program ffmpeg; install it, or write a .gif")
    return kind(fps=frames_per_second)


def _film(
    figure: Figure, places: np.ndarray, writer: AbstractMovieWriter, target: Path, frames_per_second: int
) -> None:
    (trail,) = (line for line in figure.axes[0].lines if line.get_label() == "path")
    (agent,) = (line for line in figure.axes[0].lines if line.get_label() == "agent")
    # Laid out once, at the film's own resolution: else each frame would be.
    figure.set_dpi(_FILM_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    with writer.saving(figure, str(target), dpi=_FILM_DPI):
        for step in range(len(places)):
            trail.set_data(places[: step + 1, 0], places[: step + 1, 1])
            agent.set_data(places[step : step + 1, 0], places[step : step + 1, 1])
            writer.grab_frame()
        for _ in range(round(_LAST_FRAME_SECONDS * frames_per_second)):
            writer.grab_frame()
