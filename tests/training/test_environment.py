"""Training in environments: run folder, exact resume, seeds, sweeps, fresh levels, held-out evaluation."""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms.environment_ppo import make_environment_ppo
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.envs import make
from jaxrl_lm.envs.binning import BinningConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import PolicyConfig
from jaxrl_lm.storage import RunFolder, read_jsonl, read_metrics, read_seeds
from jaxrl_lm.training import environment as training
from jaxrl_lm.training.environment_config import TrainPPOConfig
from jaxrl_lm.training.evaluate_run import evaluate_run, evaluation_keys
from jaxrl_lm.training.evaluation import evaluation_metrics, play
from jaxrl_lm.types import EnvironmentLearner

MakeConfig = Callable[..., TrainPPOConfig]


def config_in(folder: Path, **changes: Any) -> TrainPPOConfig:
    """A small run in 5x5 mazes; what is given replaces its settings."""
    settings: dict[str, Any] = {
        "out": str(folder / "run"),
        "env_options": ("size=5", "observation=grid", "reward=sparse", "num_levels=32", "max_steps=16"),
        "total_steps": 8 * 16 * 6,
        "chunk_updates": 2,
        "num_envs": 8,
        "num_steps": 16,
        "eval_episodes": 12,
        "policy": PolicyConfig(trunk=TrunkConfig(hidden_sizes=(16,), kind="mlp")),
        "ppo": PPOConfig(learning_rate=1e-2, num_epochs=2, num_minibatches=2, minibatch_unit="steps"),
    }
    return TrainPPOConfig(**(settings | changes))


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """Builds a configuration in a folder of the test's own."""
    return partial(config_in, tmp_path)


def train(config: TrainPPOConfig) -> Any:
    return training.train_environment(config, make_environment_ppo)


def straight_config_in(folder: Path) -> TrainPPOConfig:
    """Three seeds, a checkpoint every second chunk, a learning rate that stays."""
    config = config_in(folder, num_seeds=3, eval_every=2, save_every=2)
    return replace(config, ppo=replace(config.ppo, anneal_updates=0))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run, for the tests that only look."""
    return train(straight_config_in(tmp_path_factory.mktemp("straight")))


@pytest.fixture(scope="module")
def large_levels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Settings, task and state in mazes so large that no two are alike by chance."""
    options = ("size=17", "observation=grid", "num_levels=64", "max_steps=16")
    config = config_in(tmp_path_factory.mktemp("large"), env_options=options)
    return config, *training.load_environment_task(config, make_environment_ppo)


def test_a_run_leaves_metrics_seeds_plots_and_report(straight: RunFolder) -> None:
    folder = straight
    curves = read_metrics(folder)
    assert [*curves["loss/total"].steps] == [1, 2, 3]
    assert [*curves["eval/solved"].steps] == [2, 3]
    assert np.all(curves["ratio/first_max_error"].values < 1e-4)
    seeds = list(read_jsonl(folder.seeds_file))
    assert [record["num_steps"] for record in seeds] == [256, 512, 768]
    for record in seeds:
        known = [value for value in record["episode/return"] if value is not None]
        assert len(record["episode/return"]) == 3
        assert len(set(known)) > 1, "seeds must differ"
        expected = curves["episode/return"].values[record["step"] - 1]
        assert np.mean(known) == pytest.approx(expected)
    saved = folder.read_config()
    assert saved["policy"]["trunk"]["hidden_sizes"] == [16]
    assert "resume" not in saved
    assert folder.report_file.is_file()
    assert (folder.plots_folder / "episode.png").is_file()


def test_a_resumed_run_repeats_the_numbers_bit_for_bit(straight: RunFolder, tmp_path: Path) -> None:
    part, whole = straight_config_in(tmp_path), read_metrics(straight)
    folder = train(part)
    checkpoints = sorted(int(path.name) for path in folder.checkpoints_folder.iterdir() if path.name.isdigit())
    assert checkpoints[-1] == 3
    # As if the run had been killed after its second chunk, which was saved.
    shutil.rmtree(folder.checkpoints_folder / "3")
    resumed = read_metrics(train(replace(part, resume=True)))
    for name, curve in whole.items():
        if not name.startswith("time/"):
            np.testing.assert_array_equal(resumed[name].values, curve.values, err_msg=name)
    assert len(list(read_jsonl(folder.seeds_file))) == 3


def test_every_seed_of_a_sweep_meets_every_value(make_config: MakeConfig) -> None:
    config = make_config(num_seeds=2, sweep="learning_rate=1e-9,1e-2")
    task, state = training.load_environment_task(config, make_environment_ppo)
    rates = np.asarray(state.learners.ppo.hyperparams.learning_rate)
    np.testing.assert_allclose(rates, [1e-9, 1e-9, 1e-2, 1e-2], rtol=1e-6)
    before = [np.asarray(leaf).copy() for leaf in jax.tree.leaves(state.learners.ppo.params)]
    for leaf in before:
        np.testing.assert_array_equal(leaf[:2], leaf[2:])
    run = jax.jit(jax.vmap(lambda s, p: task.learner.update(s, p)[0], (0, None)))
    after = jax.tree.leaves(run(state.learners, state.env_params).ppo.params)
    moved = [np.abs(np.asarray(new) - old).reshape(4, -1).max(1) for new, old in zip(after, before, strict=True)]
    assert np.max([m[:2] for m in moved]) < 1e-6
    assert np.max([m[2:] for m in moved]) > 1e-3


def test_a_sweep_tells_of_each_value_and_goes_on_where_one_diverges(make_config: MakeConfig) -> None:
    config = make_config(num_seeds=2, sweep="learning_rate=1e-2,1e30", eval_every=1)
    folder = train(config)
    seeds, curves = read_seeds(folder), read_metrics(folder)
    assert {
        len(values) for record in read_jsonl(folder.seeds_file) for values in record.values() if type(values) is list
    } == {2}
    assert {"eval/return learning_rate=0.01", "eval/return learning_rate=1e+30"} <= set(seeds) & set(curves)
    assert "loss/total learning_rate=0.01" in curves
    found = evaluate_run(config, make_environment_ppo, env_options=(), num_episodes=5, seed=0)
    assert found["eval/return"].shape == (4,)
    assert [found["eval/return"][rows].shape for _, rows in config.sweep_columns()] == [(2,), (2,)]


def test_a_swept_discount_is_that_of_its_evaluation(make_config: MakeConfig) -> None:
    config = make_config(num_seeds=2, sweep="discount=0.5,1.0")
    np.testing.assert_array_equal(training.agent_discounts(config), [0.5, 0.5, 1.0, 1.0])
    np.testing.assert_array_equal(training.agent_discounts(make_config(num_seeds=2)), np.float32([0.99] * 2))


@pytest.mark.parametrize("values", ["-1e-3", "nan"])
def test_a_swept_value_must_be_one_that_could_stand_alone(make_config: MakeConfig, values: str) -> None:
    with pytest.raises(InputError, match="learning_rate"):
        training.load_environment_task(make_config(sweep=f"learning_rate=1e-3,{values}"), make_environment_ppo)


def test_what_cannot_be_swept_is_refused_and_named(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="num_steps cannot be swept; what can: clip_range"):
        training.load_environment_task(make_config(sweep="num_steps=1,2"), make_environment_ppo)
    with pytest.raises(InputError, match="sweep='learning_rate'"):
        make_config(sweep="learning_rate")


def test_fresh_levels_replace_the_half_that_no_episode_is_in() -> None:
    env, params = make("Maze-v0", size=5, num_levels=16)
    refresh = jax.jit(env.refresh)
    first = refresh(params, jax.random.key(1))
    second = refresh(first, jax.random.key(2))
    assert first.bank.num_levels == second.bank.num_levels == 32
    assert (int(first.first_level), int(second.first_level)) == (16, 0)
    np.testing.assert_array_equal(first.bank.moves[:16], params.bank.moves)
    np.testing.assert_array_equal(second.bank.moves[16:], first.bank.moves[16:])
    assert np.any(np.asarray(second.bank.moves[:16]) != np.asarray(first.bank.moves[:16]))
    for drawn, low in ((first, 16), (second, 0)):
        levels = np.asarray(env.initial_states(jax.random.key(3), (500,), drawn).level)
        assert set(levels) == set(range(low, low + 16))


def test_no_episode_is_left_in_levels_that_are_replaced(make_config: MakeConfig) -> None:
    config = make_config(total_steps=8 * 16 * 12, chunk_updates=1, num_steps=8)
    task, state = training.load_environment_task(config, make_environment_ppo)
    assert task.refresh_every == 2, "16 steps of an episode are two chunks of 8"
    folder = training.storage.RunFolder.create(Path(config.out), {})
    chunk = training.make_chunk(task, folder)
    banks = []
    for num_done in range(8):
        state, _ = chunk(state, num_done)
        banks.append(np.asarray(state.env_params.bank.moves).copy())
        env_states = state.learners.rollout.acting.env_states
        here = np.asarray(state.env_params.bank.moves)[np.asarray(env_states.level), np.asarray(env_states.position)]
        assert np.all(here > 0), "an agent stands in a wall"
    changed = [bool(np.any(old != new)) for old, new in itertools.pairwise(banks)]
    assert changed == [False, True] * 3 + [False]


def test_held_out_levels_are_not_those_of_training(large_levels: Any) -> None:
    _, task, state = large_levels
    held_out = {row.tobytes() for row in np.asarray(task.held_out.bank.moves)}
    assert len(held_out) == 12
    assert not held_out & {row.tobytes() for row in np.asarray(state.env_params.bank.moves)}


def test_evaluations_of_a_run_draw_other_levels_even_with_its_own_seed(large_levels: Any) -> None:
    config, task, state = large_levels
    env, _ = training.make_env(config)
    _, evaluated = training.held_out_levels(env, None, 64, evaluation_keys(config.seed)[0])
    met = {row.tobytes() for row in np.asarray(state.env_params.bank.moves)}
    met |= {row.tobytes() for row in np.asarray(task.held_out.bank.moves)}
    assert not met & {row.tobytes() for row in np.asarray(evaluated.bank.moves)}


def test_a_run_on_many_devices_is_evaluated_on_one(straight: RunFolder) -> None:
    config = replace(straight_config_in(straight.path.parent), num_devices=64)
    found = evaluate_run(config, make_environment_ppo, env_options=(), num_episodes=5, seed=0)
    assert found["eval/solved"].shape == (3,)


def test_the_shaped_reward_has_the_agents_discount(make_config: MakeConfig) -> None:
    config = make_config(env_options=("size=5", "reward=shaped"), discount=0.9)
    assert training.make_env(config)[0].config.discount == 0.9
    with pytest.raises(InputError, match=r"discount=0.5 of the shaped reward must be the agent's, discount=0.9"):
        training.make_env(replace(config, env_options=("size=5", "reward=shaped", "discount=0.5")))
    with pytest.raises(InputError, match="the shaped reward has one discount"):
        training.make_env(replace(config, sweep="discount=0.5,0.6"))


def test_a_maze_is_not_binned(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="binning: the levels of Maze-v0"):
        training.make_env(make_config(binning=BinningConfig(num_bins=2)))


def oracle(env: Any) -> EnvironmentLearner:
    """Plays by the distance table, which it looks up by the grid it sees."""

    def act(bank: Any, observations: Any, is_first: Any, memory: Any, key: Any) -> Any:
        walls, agent = observations[..., 0].reshape(-1, env.num_cells), observations[..., 1].reshape(-1, env.num_cells)
        goal = jnp.argmax(observations[..., 2].reshape(-1, env.num_cells), axis=-1)
        is_level = jnp.all((bank.moves == 0)[None] == walls[:, None], axis=-1) & (bank.goals[None] == goal[:, None])
        level, position = jnp.argmax(is_level, axis=-1), jnp.argmax(agent, axis=-1)
        width = env.source.width
        nearby = jnp.stack(
            [bank.distances[level, position + offset] for offset in (-width, width, -1, 1)], axis=-1
        ).astype(jnp.int32)
        return jnp.argmin(nearby, axis=-1), memory

    return EnvironmentLearner(
        init=lambda key, params: params.bank,
        update=lambda state, params: (state, {}),
        act=act,
        init_memory=lambda num_envs: None,
        steps_per_update=1,
    )


@pytest.mark.parametrize("reward", ["article", "sparse", "shaped"])
def test_the_oracle_solves_every_level_at_the_optimal_return(reward: str) -> None:
    env, params = make("Maze-v0", size=9, observation="grid", reward=reward, num_levels=40, discount=0.9)
    played = play(env, oracle(env), params.bank, params, jax.random.key(0), num_episodes=1, discount=0.9)
    assert played.returns.shape == (40,)
    np.testing.assert_allclose(played.discounted_returns, env.optimal_returns(params, 0.9), rtol=1e-4, atol=1e-5)
    start = np.take_along_axis(np.asarray(params.bank.distances), np.asarray(params.bank.starts)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(played.lengths, start)
    metrics = evaluation_metrics(env, params, played, 0.9)
    assert float(metrics["eval/solved"]) == 1.0
    assert float(metrics["eval/regret"]) == pytest.approx(0.0, abs=1e-5)
    if reward == "sparse":
        assert float(metrics["eval/oracle_share"]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_devices": 3}, "num_devices=3: there are 1"),
        ({"env_options": ("size",)}, "env_options='size' must be KEY=VALUE"),
        ({"env_options": ("size=6",)}, "size=6 must be odd"),
        ({"env": "Mase-v0", "env_options": ()}, "Maze-v0"),
        ({"discount": 1.5}, "discount=1.5 must be from 0 to 1"),
        ({"ppo": PPOConfig(num_minibatches=5, minibatch_unit="steps")}, "num_minibatches=5 does not divide"),
        ({"policy": PolicyConfig(memory_size=4)}, "use 'sequences'"),
    ],
)
def test_bad_settings_are_refused_before_the_folder_is_made(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        train(make_config(**changes))
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()
