"""Grids of hyperparameters: every point has a name of its own, and what is no grid is refused."""

import numpy as np
import pytest

from jaxrl_lm.errors import InputError
from jaxrl_lm.training.environments.sweep import read_sweep


def test_several_names_are_a_grid_the_last_of_which_varies_fastest() -> None:
    sweep = read_sweep(("learning_rate=1e-3,3e-4", "ppo.clip-range=0.1,0.2"))
    assert sweep.points == [
        {"learning_rate": 1e-3, "clip_range": 0.1},
        {"learning_rate": 1e-3, "clip_range": 0.2},
        {"learning_rate": 3e-4, "clip_range": 0.1},
        {"learning_rate": 3e-4, "clip_range": 0.2},
    ]
    assert sweep.labels[1] == " learning_rate=0.001 clip_range=0.2"
    np.testing.assert_array_equal(sweep.column("clip_range"), np.float32([0.1, 0.2, 0.1, 0.2]))


def test_nothing_swept_is_one_point_without_a_name() -> None:
    sweep = read_sweep(())
    assert (sweep.points, sweep.labels) == ([{}], [""])


def test_values_alike_in_six_digits_have_names_of_their_own() -> None:
    labels = read_sweep(("discount=0.9999991,0.9999992,0.9999998",)).labels
    assert len(set(labels)) == 3


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (("learning_rate",), "must be NAME=V1,V2"),
        (("learning_rate=a",), "must be NAME=V1,V2"),
        (("learning_rate=1,1.0",), "1.0 is given twice"),
        (("learning_rate=0.1,0.1000000001",), r"is given twice \(in float32\)"),
        (("learning_rate=1e-3,nan",), "nan is not a finite"),
        (("learning_rate=1e-3,1e39",), "1e\\+39 is not a finite"),
        (("learning_rate=1e-3", "learning-rate=1e-4"), "learning_rate is given twice"),
    ],
)
def test_what_is_no_grid_is_refused(sweep: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_sweep(sweep)
