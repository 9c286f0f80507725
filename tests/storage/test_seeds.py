"""Curves over seeds: interquartile means and intervals worked by hand, files damaged and whole."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder, append_jsonl, seeds
from jaxrl_lm.storage.seeds import bootstrap_interval, interquartile_mean, read_seeds, write_seed_plots


def test_interquartile_mean_leaves_out_a_quarter_at_either_end():
    np.testing.assert_allclose(interquartile_mean(np.array([[100.0, 1.0, 2.0, -50.0], [1, 1, 1, 1]])), [1.5, 1.0])
    np.testing.assert_allclose(interquartile_mean(np.array([3.0])), 3.0)


def test_interval_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = [low <= 0 <= high for low, high in (bootstrap_interval(generator.normal(size=20)) for _ in range(200))]
    assert 0.85 < np.mean(covered) <= 0.99


def test_interval_of_equal_seeds_is_a_point():
    low, high = bootstrap_interval(np.full((3, 5), 2.0))
    np.testing.assert_array_equal(low, [2.0] * 3)
    np.testing.assert_array_equal(high, [2.0] * 3)


def test_curves_come_back_and_are_drawn(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", {})
    rows = [
        {"step": 1, "num_steps": 10, "episode/return": [1.0, None]},
        {"step": 2, "num_steps": 20, "episode/return": [2.0, 4.0], "eval/solved": [0.5, 1.0]},
    ]
    append_jsonl(folder.seeds_file, rows)
    curves = read_seeds(folder)
    np.testing.assert_array_equal(curves["episode/return"].num_steps, [10, 20])
    np.testing.assert_array_equal(curves["episode/return"].values, [[1.0, np.nan], [2.0, 4.0]])
    np.testing.assert_array_equal(curves["eval/solved"].num_steps, [20])
    (picture,) = write_seed_plots(folder)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_seeds_has_no_curves(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", {})
    assert read_seeds(folder) == {}
    assert write_seed_plots(folder) == []


@pytest.mark.parametrize("line", [{"step": 1, "eval/solved": [1.0]}, {"step": 1, "num_steps": 3, "eval/solved": 1.0}])
def test_damaged_lines_are_named(tmp_path: Path, line: dict[str, object]):
    folder = RunFolder.create(tmp_path / "run", {})
    append_jsonl(folder.seeds_file, [line])
    with pytest.raises(InputError, match=r"seeds\.jsonl.*line 1|line 1.*seeds\.jsonl"):
        read_seeds(folder)


def test_a_curve_goes_on_over_the_seeds_that_are_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seeds, "finish_panel", lambda *args, **names: None)
    values = np.array([[step, step + 1.0, step + 5.0] for step in range(10)])
    values[4:, 2] = np.nan
    values[9] = np.nan
    panel = Figure().add_subplot()
    seeds.draw_seeds(panel, seeds.SeedCurves(np.arange(10) * 10, values), color="black")
    steps, means = panel.lines[-1].get_data()
    np.testing.assert_array_equal(steps, [0, 10, 20, 30, 40, 50, 60, 70, 80])
    np.testing.assert_allclose(
        means, [2, 3, 4, 5, 4.5, 5.5, 6.5, 7.5, 8.5]
    )  # of few seeds the interquartile mean is the mean
    bounds = panel.collections[0].get_paths()[0].vertices
    after = bounds[bounds[:, 0] == 80, 1]
    np.testing.assert_allclose([after.min(), after.max()], [8, 9])
