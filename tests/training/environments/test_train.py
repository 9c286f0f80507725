"""Training in environments: run folder, exact resume, seeds, sweeps, fresh levels, held-out evaluation."""

import inspect
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
from gymnax.environments import spaces

from jaxrl_lm import load_agent
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.envs.base import generated_levels
from jaxrl_lm.envs.binning import BinningConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import PolicyConfig
from jaxrl_lm.storage import RunFolder, read_jsonl, read_metrics, read_seeds
from jaxrl_lm.training.environments import agent, evaluate
from jaxrl_lm.training.environments.algorithms import TrainPPOConfig
from jaxrl_lm.training.environments.evaluate import evaluate_run, restore_run
from jaxrl_lm.training.environments.evaluation import agent_discounts
from jaxrl_lm.training.environments.task import load_task, make_env, over_learners
from jaxrl_lm.training.environments.train import make_chunk, train_environment
from tests.measured import is_measured

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
    return train_environment(config)


def straight_config_in(folder: Path) -> TrainPPOConfig:
    """Three seeds, a checkpoint every second chunk, a learning rate that stays."""
    config = config_in(folder, num_seeds=3, eval_every=2, save_every=2)
    return replace(config, ppo=replace(config.ppo, anneal_updates=0))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run, for the tests that only look."""
    return train(straight_config_in(tmp_path_factory.mktemp("straight")))


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
    np.testing.assert_allclose(curves["flops/total"].values, np.cumsum(curves["flops/update"].values))


def test_a_resumed_run_repeats_the_numbers_bit_for_bit(straight: RunFolder, tmp_path: Path) -> None:
    part, whole = straight_config_in(tmp_path), read_metrics(straight)
    folder = train(part)
    checkpoints = sorted(int(path.name) for path in folder.checkpoints_folder.iterdir() if path.name.isdigit())
    assert checkpoints[-1] == 3
    # As if the run had been killed after its second chunk, which was saved.
    shutil.rmtree(folder.checkpoints_folder / "3")
    resumed = read_metrics(train(replace(part, resume=True)))
    for name, curve in whole.items():
        if not is_measured(name):
            np.testing.assert_array_equal(resumed[name].values, curve.values, err_msg=name)
    assert len(list(read_jsonl(folder.seeds_file))) == 3


def test_every_seed_of_a_sweep_meets_every_value(make_config: MakeConfig) -> None:
    config = make_config(num_seeds=2, sweep=("learning_rate=1e-9,1e-2",))
    task, state = load_task(config)
    rates = np.asarray(state.learners.ppo.hyperparams.learning_rate)
    np.testing.assert_allclose(rates, [1e-9, 1e-9, 1e-2, 1e-2], rtol=1e-6)
    before = [np.asarray(leaf).copy() for leaf in jax.tree.leaves(state.learners.ppo.params)]
    for leaf in before:
        np.testing.assert_array_equal(leaf[:2], leaf[2:])
    run = jax.jit(over_learners(config, task.env, lambda s, p: task.learner.update(s, p)[0]))
    after = jax.tree.leaves(run(state.learners, state.env_params).ppo.params)
    moved = [np.abs(np.asarray(new) - old).reshape(4, -1).max(1) for new, old in zip(after, before, strict=True)]
    assert np.max([m[:2] for m in moved]) < 1e-6
    assert np.max([m[2:] for m in moved]) > 1e-3


def test_a_sweep_tells_of_each_value_and_goes_on_where_one_diverges(make_config: MakeConfig) -> None:
    config = make_config(num_seeds=2, sweep=("learning_rate=1e-2,1e30",), eval_every=1)
    folder = train(config)
    seeds, curves = read_seeds(folder), read_metrics(folder)
    assert {
        len(values) for record in read_jsonl(folder.seeds_file) for values in record.values() if type(values) is list
    } == {2}
    assert {"eval/return learning_rate=0.01"} <= set(seeds) & set(curves)
    assert "loss/total learning_rate=0.01" in curves
    found = evaluate_run(config, env_options=(), num_episodes=5, seed=0).metrics
    assert found["eval/return"].shape == (4,)
    assert [found["eval/return"][rows].shape for _, rows in config.sweep_columns()] == [(2,), (2,)]


def test_a_swept_discount_is_that_of_its_evaluation(make_config: MakeConfig) -> None:
    config = make_config(num_seeds=2, sweep=("discount=0.5,1.0",))
    np.testing.assert_array_equal(agent_discounts(config), [0.5, 0.5, 1.0, 1.0])
    np.testing.assert_array_equal(agent_discounts(make_config(num_seeds=2)), np.float32([0.99] * 2))


def test_a_swept_value_must_be_one_that_could_be_given_alone(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="learning_rate"):
        load_task(make_config(sweep=("learning_rate=1e-3,-1e-3",)))


def test_what_cannot_be_swept_is_refused_and_named(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="num_steps cannot be swept; choose from: clip_range"):
        load_task(make_config(sweep=("num_steps=1,2",)))


def test_no_episode_is_left_in_levels_that_are_replaced(make_config: MakeConfig) -> None:
    config = make_config(total_steps=8 * 16 * 12, chunk_updates=1, num_steps=8)
    task, state = load_task(config)
    assert task.refresh_every == 2, "16 steps of an episode are two chunks of 8"
    folder = RunFolder.create(Path(config.out), {})
    chunk = make_chunk(task, folder)
    banks = []
    for num_done in range(8):
        state, _ = chunk(state, num_done)
        banks.append(np.asarray(state.env_params.bank.moves).copy())
        env_states = state.learners.rollout.acting.env_states
        here = np.asarray(state.env_params.bank.moves)[0, np.asarray(env_states.level), np.asarray(env_states.position)]
        assert np.all(here > 0), "an agent stands in a wall"
    changed = [bool(np.any(old != new)) for old, new in itertools.pairwise(banks)]
    assert changed == [False, True] * 3 + [False]


def test_a_run_on_many_devices_is_evaluated_on_one(straight: RunFolder) -> None:
    config = replace(straight_config_in(straight.path.parent), num_devices=64)
    found = evaluate_run(config, env_options=(), num_episodes=5, seed=0)
    assert found.metrics["eval/solved"].shape == (3,)
    assert (found.num_chunks, found.num_steps) == (3, 768)


def test_an_agent_of_a_run_acts_as_its_seed_does(straight: RunFolder) -> None:
    task, state, _ = restore_run(straight_config_in(straight.path.parent))
    agent = load_agent(straight.path, seed=2)
    levels, learner = jax.tree.map(lambda leaf: leaf[2], (task.held_out, state.learners))
    observations, _ = task.held_out_env.level_resets(levels)
    key = jax.random.key(0)
    expected, _ = task.learner.act(learner, observations, jnp.ones(12, bool), None, key)
    np.testing.assert_array_equal([agent.act(observations[level], key) for level in range(12)], expected)
    np.testing.assert_array_equal(agent.env_params.bank.moves, levels.bank.moves)


def test_the_best_checkpoint_is_the_one_with_the_highest_return_on_held_out_levels(straight: RunFolder) -> None:
    config, returns = straight_config_in(straight.path.parent), read_metrics(straight)["eval/return"]
    best = int(returns.steps[np.argmax(returns.values)])
    for checkpoint in ("best", best):
        _, state, number = restore_run(config, checkpoint)
        assert number == best
        np.testing.assert_array_equal(state.learners.num_updates, [best * config.chunk_updates] * 3)
    agent = load_agent(straight.path, checkpoint="best")
    observation, _ = agent.env.reset(jax.random.key(0), agent.env_params)
    assert int(agent.act(observation, jax.random.key(1))) in range(4)
    with pytest.raises(InputError, match=r"checkpoint='best': .* without --eval-every, .* train with --eval-every 4"):
        restore_run(replace(config, eval_every=0), "best")


@pytest.mark.parametrize("seed", [1.5, -1, 3])
def test_a_seed_that_the_run_does_not_have_is_refused(make_config: MakeConfig, seed: Any) -> None:
    index = inspect.unwrap(agent._index)  # without the check of types that tests have
    with pytest.raises(InputError, match=rf"seed={seed}: the run has seeds 0 to 2; choose one of them"):
        index(make_config(num_seeds=3), seed, None)


def test_a_learner_that_has_diverged_is_refused_with_a_remedy_that_helps(make_config: MakeConfig) -> None:
    config = make_config(num_seeds=2, sweep=("learning_rate=1e-2,1e30",))
    is_diverged = np.array([False, True, True, True])
    agent._check_sound(config, is_diverged, 0)
    with pytest.raises(InputError, match=r"seed=1 has diverged.*; choose another seed"):
        agent._check_sound(config, is_diverged, 1)
    with pytest.raises(
        InputError, match=r"all seeds with learning_rate=1e\+30 have diverged.*choose another value, or"
    ):
        agent._check_sound(config, is_diverged, 3)


def test_a_layout_takes_the_place_of_generated_mazes_and_the_reverse(straight: RunFolder) -> None:
    config = straight_config_in(straight.path.parent)
    rows = ["S.#..", "..#..", ".....", "..#..", "..#.G"]
    found = evaluate_run(config, env_options=(f"layout={chr(10).join(rows)}",), num_episodes=4, seed=0)
    np.testing.assert_array_equal(found.metrics["eval/distinct_levels"], [1, 1, 1])
    with pytest.raises(InputError, match="keep size and observation"):
        evaluate_run(config, env_options=("layout=medium",), num_episodes=4, seed=0)
    drawn = replace(config, env_options=("layout=medium", "observation=window"))
    assert generated_levels(make_env(drawn)[0]) is None
    assert generated_levels(make_env(drawn, size=5)[0]) is not None


def test_bins_of_an_evaluation_must_be_those_of_the_training(tmp_path: Path) -> None:
    binning = BinningConfig(num_bins=4)
    settings: dict[str, Any] = {"env": "Pendulum-v1", "env_options": (), "binning": binning}
    task, _ = load_task(config_in(tmp_path, **settings))
    check = evaluate._check_same_view
    check(task, *make_env(task.config, g=9.0))
    with pytest.raises(InputError, match="env_options: bins follow the bounds"):
        check(task, *make_env(task.config, max_speed=4.0))
    bounded = replace(binning, low=(-1.0, -1.0, -8.0), high=(1.0, 1.0, 8.0))
    task, _ = load_task(config_in(tmp_path, **settings | {"binning": bounded}))
    check(task, *make_env(task.config, max_speed=4.0))


def test_actions_of_an_evaluation_must_be_those_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = load_task(config_in(tmp_path, env="CartPole-v1", env_options=()))
    env, env_params = make_env(task.config)
    evaluate._check_same_view(task, env, env_params)
    monkeypatch.setattr(env, "action_space", lambda params: spaces.Discrete(3))
    with pytest.raises(InputError, match=r"takes Discrete\(3.*trained on Discrete\(2"):
        evaluate._check_same_view(task, env, env_params)


def test_the_shaped_reward_has_the_agents_discount(make_config: MakeConfig) -> None:
    config = make_config(env_options=("size=5", "reward=shaped"), discount=0.9)
    assert make_env(config)[0].config.discount == 0.9
    with pytest.raises(InputError, match=r"discount=0.5 of the shaped reward must be the agent's, discount=0.9"):
        make_env(replace(config, env_options=("size=5", "reward=shaped", "discount=0.5")))
    with pytest.raises(InputError, match="the shaped reward has one discount"):
        make_env(replace(config, sweep=("discount=0.5,0.6",)))


def test_a_maze_of_too_many_bins_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="num_bins"):
        make_env(make_config(binning=BinningConfig(num_bins=2)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_devices": 3}, "num_devices=3: only 1 available"),
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
