"""Levels of a run: each seed has its own, none of them held out, and the trainer says what they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.envs.maze.grid import LevelBank
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.environments.algorithms import TrainDQNConfig
from jaxrl_lm.training.environments.evaluate import evaluation_keys
from jaxrl_lm.training.environments.evaluation import few_layouts, level_counts
from jaxrl_lm.training.environments.task import held_out_levels, load_task
from jaxrl_lm.training.environments.train import make_chunk
from tests.training.environments.test_train import config_in


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Settings, task and state of two seeds in 9x9 mazes."""
    options = ("size=9", "observation=grid", "reward=sparse", "num_levels=64", "max_steps=16")
    config = config_in(tmp_path_factory.mktemp("levels"), env_options=options, num_seeds=2, chunk_updates=1)
    return config, *load_task(config)


def layouts(bank: LevelBank, seed: int) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(bank.moves[seed])}


def test_every_seed_trains_and_is_evaluated_on_levels_of_its_own(loaded: Any) -> None:
    _, task, state = loaded
    for bank in (state.env_params.bank, task.held_out.bank):
        assert bank.moves.shape[0] == 2
        assert len(layouts(bank, 0) & layouts(bank, 1)) < len(layouts(bank, 0)) / 2


def test_no_seed_trains_on_walls_that_any_is_evaluated_on(loaded: Any) -> None:
    config, task, state = loaded
    met = layouts(state.env_params.bank, 0) | layouts(state.env_params.bank, 1)
    assert not met & (layouts(task.held_out.bank, 0) | layouts(task.held_out.bank, 1))
    # Nor does a later evaluation, even one with the seed of the training.
    _, later = held_out_levels(config, task.env, None, 64, evaluation_keys(config.seed)[0])
    assert not met & layouts(later.bank, 0)
    assert layouts(later.bank, 0) != layouts(task.held_out.bank, 0)


def test_the_seed_among_the_options_chooses_the_levels(loaded: Any) -> None:
    config, _, state = loaded
    other = load_task(replace(config, env_options=(*config.env_options, "seed=1")))[1]
    assert layouts(other.env_params.bank, 0) != layouts(state.env_params.bank, 0)


def test_distinct_levels_are_counted_for_every_learner(loaded: Any) -> None:
    config, task, _ = loaded
    swept = replace(config, sweep=("learning_rate=1e-3,1e-4",))
    counts = level_counts(swept, task.held_out_env, task.held_out)
    expected = [len(layouts(task.held_out.bank, seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(counts["eval/distinct_layouts"], expected * 2)
    assert few_layouts(counts, num_levels=12) is None


def test_few_layouts_are_said_with_their_number() -> None:
    counts = {"eval/distinct_levels": np.array([240.0]), "eval/distinct_layouts": np.array([11.0])}
    assert "the 256 held-out levels have only 11 different layouts and are 240 different levels" in str(
        few_layouts(counts, num_levels=256)
    )
    assert few_layouts({}, num_levels=256) is None


def test_a_chunk_evaluates_on_held_out_and_on_training_levels_greedily_and_sampled(loaded: Any) -> None:
    config, task, _ = loaded
    # Anew: a chunk donates its state.
    state = load_task(config)[1]
    task = replace(task, num_chunks=1)
    folder = RunFolder.create(Path(config.out), {})
    _, numbers = make_chunk(task, folder)(state, 0)
    groups = [name.partition("/")[0] for name in numbers if name.endswith("/solved")]
    assert groups == ["eval", "eval_sampled", "eval_train"]
    assert numbers["eval/distinct_levels"] == np.mean(
        level_counts(config, task.held_out_env, task.held_out)["eval/distinct_levels"]
    )


def test_wrapped_mazes_are_refreshed_held_out_and_compared_with_the_oracle(tmp_path: Path) -> None:
    options = ("size=9", "observation=grid", "reward=sparse", "num_levels=32", "max_steps=16")
    wrappers = ("frame_stack=2", "sticky_actions=0.1", "clip_reward=0.5")
    config = config_in(tmp_path, env_options=options, wrappers=wrappers, num_seeds=2, chunk_updates=1)
    task, state = load_task(config)
    assert task.refresh_every == 1
    assert task.held_out_env.observation_space(task.held_out).shape == (9, 9, 6)
    met, held_out = layouts(state.env_params.bank, 0), layouts(task.held_out.bank, 0)
    assert len(met) > 20
    chunk = make_chunk(replace(task, num_chunks=2), RunFolder.create(Path(config.out), {}))
    state, _ = chunk(state, 0)
    state, numbers = chunk(state, 1)
    fresh = layouts(state.env_params.bank, 0)
    assert len(fresh - met) > 10, "levels were not refreshed"
    assert not (met | fresh) & held_out
    assert {name.partition("/")[0] for name in numbers if name.endswith("/solved")} >= {"eval", "eval_train"}
    assert numbers["eval/distinct_layouts"] == np.mean([len(layouts(task.held_out.bank, seed)) for seed in (0, 1)])
    # Half of what is paid without a clipped reward, the discount to the power of the moves before the last.
    bank = task.held_out.bank
    moves = np.take_along_axis(np.asarray(bank.distances), np.asarray(bank.starts)[..., None], -1)[..., 0]
    assert numbers["eval/oracle_return"] == pytest.approx(0.5 * np.mean(0.99 ** (moves - 1.0)), rel=1e-5)
    assert 0 <= numbers["eval/oracle_share"] <= 1


def test_a_diverged_seed_is_named_while_the_other_goes_on_until_none_is_left(
    loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config, task, _ = loaded

    def broken(*seeds: int) -> Any:
        state = load_task(config)[1]
        params = jax.tree.map(lambda leaf: leaf.at[jnp.array(seeds)].set(jnp.nan), state.learners.ppo.params)
        return replace(state, learners=replace(state.learners, ppo=replace(state.learners.ppo, params=params)))

    folder = RunFolder.create(Path(config.out).with_name("diverged"), {})
    chunk = make_chunk(replace(task, num_chunks=5), folder)
    state, numbers = chunk(broken(1), 0)
    assert "seed 1 of 2 has diverged" in capsys.readouterr().err
    assert np.isfinite(numbers["loss/total"])
    assert numbers["seeds/diverged"] == 1
    np.testing.assert_array_equal(state.is_diverged, [False, True])
    _, numbers = chunk(broken(0, 1), 1)
    assert np.isnan(numbers["loss/total"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("observation=position",), "observation=position shows neither walls nor goal"),
        (("observation=position", "num_levels=1"), "num_levels=1 without --refresh-levels"),
    ],
)
def test_changing_mazes_that_cannot_be_seen_are_refused_with_the_remedy(
    tmp_path: Any, options: tuple[str, ...], words: str
) -> None:
    config = config_in(tmp_path, env_options=("size=5", *options))
    with pytest.raises(InputError, match=words):
        load_task(config)


def test_one_maze_by_its_positions_and_changing_ones_by_legal_moves_are_accepted(tmp_path: Any) -> None:
    one = config_in(
        tmp_path, env_options=("size=5", "observation=position", "num_levels=1"), refresh_levels=False, eval_episodes=1
    )
    assert load_task(one)[0].refresh_every == 0


def test_a_replay_memory_that_does_not_fit_is_refused_before_it_is_made() -> None:
    config = TrainDQNConfig(out="", env="CartPole-v1", env_options=(), buffer_size=10**9, num_seeds=64)
    with pytest.raises(InputError, match=r"64 learners takes .* GB, of which replay .* smaller buffer_size"):
        load_task(config)
