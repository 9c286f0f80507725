"""Pictures of mazes, read back: what is drawn where, files that open, errors before anything is written."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.animation import FFMpegWriter
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from jaxrl_lm.envs.maze.grid import UNREACHABLE, LevelBank, legal_moves
from jaxrl_lm.envs.maze.rendering import animate_episode, as_text, draw_level
from jaxrl_lm.errors import InputError

WIDTH, START, GOAL = 5, 6, 8
IS_OPEN = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
OPEN_CELLS = np.flatnonzero(IS_OPEN)
DISTANCES = np.full(20, UNREACHABLE)
DISTANCES[[8, 7, 6, 11]] = 0, 1, 2, 3


@pytest.fixture(scope="module")
def bank() -> LevelBank:
    """One level: a start in the corner of an angle, the goal at the end of its longer arm."""
    return LevelBank(
        moves=legal_moves(jnp.array(IS_OPEN))[None],
        starts=jnp.array([START]),
        goals=jnp.array([GOAL]),
        distances=jnp.array(DISTANCES, jnp.uint16)[None],
    )


def labels(figure: Figure) -> list[str]:
    return [str(line.get_label()) for line in figure.axes[0].lines]


def rendered(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def colour_at(figure: Figure, cell: int, nudge: float = 0.4) -> np.ndarray:
    """The colour of a cell, off its middle, where marks stand."""
    picture = rendered(figure)
    row, column = divmod(cell, WIDTH)
    x, y = figure.axes[0].transData.transform((column + nudge, row + nudge))
    return picture[len(picture) - 1 - round(y), round(x)]


def test_text_shows_walls_start_goal_and_agent(bank):
    assert as_text(bank, 0, WIDTH).split("\n") == ["██████████", "██○   ★ ██", "██  ██████", "██████████"]
    assert as_text(bank, 0, WIDTH, 11).split("\n")[2] == "██● ██████"
    assert as_text(bank, 0, WIDTH, GOAL).split("\n")[1] == "██○   ● ██"


def test_walls_are_dark_and_floor_is_light_at_their_places(bank):
    figure = draw_level(bank, 0, WIDTH)
    is_light = np.array([colour_at(figure, cell).mean() > 128 for cell in range(20)])
    np.testing.assert_array_equal(is_light, IS_OPEN.ravel())


def test_cells_are_square_and_nothing_lies_outside_the_figure(bank):
    figure = draw_level(bank, 0, WIDTH, position=7, values=-DISTANCES.astype(float), path=[6, 7])
    rendered(figure)
    origin, right, down = figure.axes[0].transData.transform([(0, 0), (1, 0), (0, 1)])
    assert right[0] - origin[0] == pytest.approx(origin[1] - down[1])
    for drawn in (*figure.axes, *figure.legends):
        box = drawn.get_tightbbox(figure.canvas.get_renderer())
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_only_what_is_given_is_drawn_and_named_in_the_legend(bank):
    assert labels(draw_level(bank, 0, WIDTH)) == ["start", "goal"]
    figure = draw_level(bank, 0, WIDTH, position=7, path=jnp.array([6, 7]))
    assert labels(figure) == ["path", "start", "goal", "agent"]
    assert [text.get_text() for text in figure.legends[0].texts] == labels(figure)
    places = {str(line.get_label()): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert places == {"path": [[1, 1], [2, 1]], "start": [[1, 1]], "goal": [[3, 1]], "agent": [[2, 1]]}


def test_values_are_a_heat_map_of_the_open_cells_with_a_colour_bar(bank):
    values = -DISTANCES.astype(float)
    values[7] = np.nan
    figure = draw_level(bank, 0, WIDTH, values=values)
    image = figure.axes[0].images[-1]
    shown = np.ma.getmaskarray(image.get_array()).ravel()
    np.testing.assert_array_equal(np.flatnonzero(~shown), [6, 8, 11])
    assert image.get_clim() == (-3.0, 0.0)
    assert figure.axes[1].get_ylabel() == "value"
    assert len(draw_level(bank, 0, WIDTH, values=np.full(20, np.nan)).axes) == 1


def test_arrows_point_where_the_policy_goes_and_none_stands_on_walls_or_goal(bank):
    policy = np.zeros(20, int)
    policy[[6, 7]] = 3
    figure = draw_level(bank, 0, WIDTH, policy=policy)
    found = {}
    for arrows in (child for child in figure.axes[0].collections if isinstance(child, Quiver)):
        for (x, y), u, v in zip(arrows.get_offsets(), arrows.U, arrows.V, strict=True):
            found[int(y) * WIDTH + int(x)] = (np.sign(u), np.sign(v))
    # The axis of rows points down, so that up is -1.
    assert found == {6: (1, 0), 7: (1, 0), 11: (0, -1)}


def test_arrows_of_probabilities_are_as_long_as_moves_are_likely(bank):
    policy = np.zeros((20, 4))
    policy[6] = 0.0, 0.25, 0.0, 0.75
    arrows = [
        child for child in draw_level(bank, 0, WIDTH, policy=policy).axes[0].collections if isinstance(child, Quiver)
    ]
    down, right = arrows[1], arrows[3]
    assert right.U.item() == pytest.approx(3 * down.V.item())
    assert arrows[0].N == arrows[2].N == 0


def test_a_level_is_drawn_into_given_axes_beside_others(bank):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert draw_level(bank, 0, WIDTH, axes=right) is figure
    assert not left.images
    assert len(right.images) == 1
    assert not figure.legends


def test_an_animation_has_a_frame_a_step_and_rests_on_the_last(bank, tmp_path):
    file = animate_episode(bank, 0, WIDTH, [11, 6, 7, 8], tmp_path / "episode.gif", frames_per_second=10)
    with Image.open(file) as film:
        assert film.n_frames == 4
        durations, pictures = [], []
        for frame in range(4):
            film.seek(frame)
            durations.append(film.info["duration"])
            pictures.append(np.asarray(film.convert("RGB")).copy())
    assert durations[:3] == [100, 100, 100]
    assert durations[3] >= 1500
    assert all((one != other).any() for one, other in pairwise(pictures))


@pytest.mark.skipif(not FFMpegWriter.isAvailable(), reason="ffmpeg is not installed")
def test_an_mp4_is_written_where_ffmpeg_is(bank, tmp_path):
    file = animate_episode(bank, 0, WIDTH, [6, 7, 8], tmp_path / "episode.mp4")
    assert file.read_bytes()[4:8] == b"ftyp"


def test_an_mp4_without_ffmpeg_says_what_to_install(bank, tmp_path, monkeypatch):
    monkeypatch.setattr(FFMpegWriter, "isAvailable", classmethod(lambda cls: False))
    with pytest.raises(InputError, match=r"needs the program ffmpeg; install it, or write a \.gif"):
        animate_episode(bank, 0, WIDTH, [6], tmp_path / "episode.mp4")


@pytest.mark.parametrize(
    ("positions", "name", "options", "message"),
    [
        ([6], "episode.webm", {}, r"must end in \.gif or \.mp4"),
        ([6], "missing/episode.gif", {}, "its folder does not exist"),
        ([], "episode.gif", {}, "positions is empty"),
        ([6, 20], "episode.gif", {}, "positions names cell 20, but cells run from 0 to 19"),
        ([6], "episode.gif", {"frames_per_second": 0}, "frames_per_second=0 must be at least 1"),
    ],
)
def test_a_wrong_animation_is_refused_before_anything_is_written(bank, tmp_path, positions, name, options, message):
    with pytest.raises(InputError, match=message):
        animate_episode(bank, 0, WIDTH, positions, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("level", "width", "options", "message"),
    [
        (1, WIDTH, {}, r"level=1 must be in 0\.\.0"),
        (-1, WIDTH, {}, "level=-1"),
        (0, 7, {}, "width=7 must divide the 20 cells"),
        (0, WIDTH, {"position": -1}, "position names cell -1"),
        (0, WIDTH, {"path": [6, 99]}, "path names cell 99"),
        (0, WIDTH, {"policy": np.full(20, 4)}, "policy holds the action 4, but actions run from 0 to 3"),
    ],
)
def test_what_does_not_exist_is_named(bank, level, width, options, message):
    with pytest.raises(InputError, match=message):
        draw_level(bank, level, width, **options)
