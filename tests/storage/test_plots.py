"""Plots: a picture for each group of metrics, with something on it."""

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_lm.storage import RunFolder, append_jsonl, plots, write_plots
from jaxrl_lm.storage.plots import running_mean, to_png


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {})


def test_each_group_present_is_drawn_in_order_and_no_other(folder):
    names = ["time/steps_per_second", "extra/x", "kl/coef", "reward/mean", "reward/min", "ungrouped"]
    append_jsonl(
        folder.metrics_file,
        [{"step": step, **{name: step * 0.5 + i for i, name in enumerate(names)}} for step in range(30)],
    )
    paths = write_plots(folder)
    assert [path.name for path in paths] == ["reward.png", "kl.png", "time.png", "extra.png"]
    assert sorted(folder.plots_folder.iterdir()) == sorted(paths)
    for path in paths:
        picture = matplotlib.image.imread(path)
        assert picture.shape[0] > 200
        assert picture.shape[1] > 400
        is_ink = (picture[..., :3].max(-1) - picture[..., :3].min(-1)) > 0.3  # coloured: a curve, not an axis
        assert is_ink.mean() > 0.001


def test_the_picture_follows_the_numbers(folder, tmp_path):
    other = RunFolder.create(tmp_path / "other", {})
    append_jsonl(folder.metrics_file, [{"step": s, "reward/mean": float(s)} for s in range(30)])
    append_jsonl(other.metrics_file, [{"step": s, "reward/mean": float(-s)} for s in range(30)])
    (up,), (down,) = write_plots(folder), write_plots(other)
    assert up.read_bytes() != down.read_bytes()
    first = up.read_bytes()
    assert write_plots(folder)[0].read_bytes() == first


def test_awkward_metrics_are_drawn_or_skipped_without_a_warning(folder, recwarn):
    records = [
        {
            "step": 0,
            "reward/$x_{": 1.0,
            "loss/gap": None,
            "kl/never": None,
            "../etc/x": 1.0,
            "ratio/huge": 1e300,
        },
        {
            "step": 5,
            "reward/$x_{": 1.0,
            "loss/gap": 2.0,
            "kl/never": None,
            "../etc/x": 1.0,
            "ratio/huge": -1e300,
        },
    ]
    append_jsonl(folder.metrics_file, records)
    assert [path.name for path in write_plots(folder)] == ["reward.png", "loss.png", "ratio.png"]
    assert not recwarn.list


def figures_of(folder, monkeypatch):
    """The figures that are drawn for a run."""
    found = []
    monkeypatch.setattr(plots, "to_png", lambda figure: found.append(figure) or to_png(figure))
    write_plots(folder)
    return found


def test_values_of_a_sweep_share_a_panel_in_a_colour_each(folder, monkeypatch):
    names = ["eval/return lr=0.1", "eval/return lr=0.2", "eval/length lr=0.1", "eval/length lr=0.2"]
    append_jsonl(folder.metrics_file, [{"step": s, **{name: float(s) for name in names}} for s in range(3)])
    (figure,) = figures_of(folder, monkeypatch)
    assert [axes.get_title() for axes in figure.axes] == ["return", "length"]
    for axes in figure.axes:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["lr=0.1", "lr=0.2"]
        assert len({line.get_color() for line in axes.lines}) == 2


def test_ticks_are_plain_numbers_and_a_single_point_has_a_marker(folder, monkeypatch):
    append_jsonl(folder.metrics_file, [{"step": 1, "steps/per_seed": 5e6, "eval/return": 1000.0001}])
    (figure,) = figures_of(folder, monkeypatch)
    (axes,) = figure.axes
    assert axes.lines[0].get_marker() == "o"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [5e6])
    assert axes.get_xlabel() == "environment steps per seed"
    assert axes.yaxis.get_offset_text().get_text() == axes.xaxis.get_offset_text().get_text() == ""
    assert axes.xaxis.get_major_formatter()(5e6) == "5M"


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 3)), (8, (3, 3))])
def test_at_most_three_panels_side_by_side(count, shape):
    _, panels = plots.make_figure(count, "Title")
    assert len(panels) == count
    assert (len({axes.get_position().y0 for axes in panels}), len({axes.get_position().x0 for axes in panels})) == shape


def test_no_metrics_give_no_plots_and_no_folder(folder):
    assert write_plots(folder) == []
    assert not folder.plots_folder.exists()


def test_running_mean_of_a_case_by_hand():
    values = np.array([1.0, 3.0, np.nan, 5.0, 9.0])
    np.testing.assert_array_equal(running_mean(values, 3), [2.0, 2.0, 4.0, 7.0, 7.0])
    np.testing.assert_array_equal(running_mean(values, 1), values)
    np.testing.assert_array_equal(running_mean(np.array([np.nan]), 5), [np.nan])


@given(
    values=st.lists(st.floats(-1e3, 1e3) | st.just(float("nan")), min_size=1, max_size=30),
    half=st.integers(0, 40),
)
def test_running_mean_equals_a_loop(values, half):
    array = np.array(values)
    expected = []
    for i in range(len(array)):
        numbers = [v for v in array[max(0, i - half) : i + half + 1] if not np.isnan(v)]
        expected.append(sum(numbers) / len(numbers) if numbers else np.nan)
    np.testing.assert_allclose(running_mean(array, 2 * half + 1), expected, rtol=1e-12, atol=1e-9)
