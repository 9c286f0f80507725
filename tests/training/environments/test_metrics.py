"""Numbers of a record: means over seeds, without those that have diverged."""

import jax.numpy as jnp
import numpy as np

from jaxrl_lm.storage import Checkpoints
from jaxrl_lm.training.environments import metrics
from jaxrl_lm.training.environments.algorithms import TrainPPOConfig

NAN = float("nan")


def config(**changes):
    return TrainPPOConfig(out="", num_seeds=2, **changes)


def test_one_diverged_seed_is_named_and_left_out_of_every_mean():
    found = {"loss/total": np.array([1.0, NAN]), "episode/return": np.array([0.5, 0.1])}
    is_diverged = metrics.is_bad(found)
    np.testing.assert_array_equal(is_diverged, [False, True])
    kept = metrics.without_diverged(found, is_diverged)
    assert metrics.by_value(config(), kept) == {"loss/total": 1.0, "episode/return": 0.5}
    assert metrics.by_seed(config(), kept) == {"episode/return": [0.5, None]}
    (line,) = metrics.say_diverged(config(), is_diverged, 4096)
    assert "seed 1 of 2 has diverged" in line
    assert "4,096 steps" in line


def test_where_all_have_diverged_the_loss_is_not_finite_so_that_the_run_stops():
    kept = metrics.without_diverged({"loss/total": np.array([1.0, 2.0])}, np.array([True, True]))
    assert np.isnan(metrics.by_value(config(), kept)["loss/total"])


def test_a_point_of_a_sweep_that_has_diverged_is_left_out_while_others_go_on():
    swept = config(sweep=("learning_rate=0.1,1e30",))
    found = {"loss/total": np.array([1.0, 3.0, NAN, NAN])}
    kept = metrics.without_diverged(found, metrics.is_bad(found))
    assert metrics.by_value(swept, kept) == {"loss/total learning_rate=0.1": 2.0}
    lines = metrics.say_diverged(swept, metrics.is_bad(found), 1)
    assert [line.partition(" has")[0] for line in lines] == [
        f"seed {seed} of 2 with learning_rate=1e+30" for seed in (0, 1)
    ]


def test_what_an_evaluation_has_no_number_for_is_not_written():
    found = {"eval/oracle_share": np.array([NAN, NAN]), "eval/return": np.array([1.0, 2.0])}
    assert metrics.by_value(config(), found) == {"eval/return": 1.5}
    assert metrics.by_seed(config(), found) == {"eval/return": [1.0, 2.0]}


def test_the_score_of_a_checkpoint_is_its_mean_return_and_of_a_sweep_that_of_the_best_value():
    assert metrics.best_return(config(), {"eval/return": 0.5, "eval_train/return": 0.9}) == (0.5, 0)
    assert metrics.best_return(config(), {"episode/return": 0.5}) is None
    swept = config(sweep=("learning_rate=0.1,0.2,0.3",))
    found = {"eval/return": np.array([0.1, 0.3, 0.0, 0.2, 0.9, 0.9])}
    numbers = metrics.by_value(swept, metrics.without_diverged(found, np.array([False] * 4 + [True] * 2)))
    assert metrics.best_return(swept, numbers) == (0.2, 0)


def test_scores_of_a_run_are_compared_anew_after_a_seed_has_diverged(tmp_path):
    found = {"eval/return": np.array([500.0, 100.0])}
    with Checkpoints(tmp_path) as checkpoints:
        first = metrics.best_return(config(), metrics.by_value(config(), found))
        assert first == (300.0, 0)
        checkpoints.save(1, {"x": jnp.zeros(())}, {}, score=first)
        alone = metrics.without_diverged(found | {"eval/return": np.array([200.0, 90.0])}, np.array([False, True]))
        later = metrics.best_return(config(), metrics.by_value(config(), alone) | {"seeds/diverged": 1.0})
        assert later == (200.0, 1)
        assert checkpoints.is_best(later)
