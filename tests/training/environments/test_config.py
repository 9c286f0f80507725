"""Settings of runs in environments: how options are read, defaults that can be learned from, what is saved."""

from typing import Any

import pytest

from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.algorithms.schedules import ScheduleConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.environments.agent import load_settings
from jaxrl_lm.training.environments.algorithms import (
    TrainDQNConfig,
    TrainPPOConfig,
    TrainPQNConfig,
    TrainQLearningConfig,
)
from jaxrl_lm.training.environments.config import read_env_options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("1e-1", 0.1),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("grid", "grid"),
        ("[1e-1, 2]", [0.1, 2]),
        ("e1", "e1"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("012", 12),
        ("2020-01-01", "2020-01-01"),
        ("[", "["),
        ("*a", "*a"),
        ("S..G", "S..G"),
    ],
)
def test_values_of_options_are_read_as_numbers_where_they_are_some(text: str, value: Any) -> None:
    found = read_env_options((f"success-rate={text}",))["success_rate"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("options", [("size",), ("=7",), ("size=7", "size=9")])
def test_options_without_a_name_or_named_twice_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="env_options="):
        read_env_options(options)


def test_mazes_are_by_default_trained_so_that_they_can_be_learned_and_the_run_says_how() -> None:
    config = TrainPPOConfig(out="run", env_options=("observation=window",))
    assert config.parsed_env_options() == {"size": 7, "observation": "window", "reward": "sparse"}
    assert config.saved()["env_options"] == ["observation=window", "size=7", "reward=sparse"]
    again = TrainPPOConfig(out="run", env_options=tuple(config.saved()["env_options"]))
    assert again.parsed_env_options() == config.parsed_env_options()
    assert "size" not in TrainPPOConfig(out="", env_options=("layout=umaze",)).parsed_env_options()
    assert TrainPPOConfig(out="", env="CartPole-v1").parsed_env_options() == {}
    assert TrainQLearningConfig(out="", env="Maze-v0").parsed_env_options() == {}


@pytest.mark.parametrize("kind", [TrainDQNConfig, TrainPQNConfig, TrainPPOConfig])
def test_default_numbers_of_environments_are_spread_over_eight_devices(kind: Any) -> None:
    assert kind(out="").agent.num_envs % 8 == 0


CONSTANT = ScheduleConfig()
STILL = {"epsilon_start": 0.1, "epsilon_end": 0.1}
LENGTHS: dict[str, tuple[Any, dict[str, Any], str | None]] = {
    "PPO's learning rate falls by default": (TrainPPOConfig, {}, None),
    "PPO, all constant": (TrainPPOConfig, {"ppo": PPOConfig(learning_rate_schedule=CONSTANT)}, "total_steps"),
    "PPO, only the clip range changes": (
        TrainPPOConfig,
        {"ppo": PPOConfig(learning_rate_schedule=CONSTANT, clip_range_schedule=ScheduleConfig(kind="cosine"))},
        None,
    ),
    "PPO, only the entropy coefficient changes": (
        TrainPPOConfig,
        {"ppo": PPOConfig(learning_rate_schedule=CONSTANT, entropy_schedule=ScheduleConfig(kind="linear"))},
        None,
    ),
    "PPO with warm-up": (
        TrainPPOConfig,
        {"ppo": PPOConfig(learning_rate_schedule=ScheduleConfig(warmup_fraction=0.1))},
        None,
    ),
    "PPO, a decay to its start": (
        TrainPPOConfig,
        {"ppo": PPOConfig(learning_rate_schedule=ScheduleConfig(kind="linear", end=1.0))},
        "total_steps",
    ),
    "PPO, a length in updates": (TrainPPOConfig, {"ppo": PPOConfig(anneal_updates=7)}, "total_steps"),
    "DQN's epsilon falls by default": (TrainDQNConfig, {}, None),
    "DQN, one epsilon": (TrainDQNConfig, STILL, "total_steps"),
    "DQN, the final epsilon throughout": (TrainDQNConfig, {"epsilon_fraction": 0.0}, "total_steps"),
    "DQN, priorities whose beta rises": (TrainDQNConfig, {**STILL, "is_prioritized": True}, None),
    "DQN, priorities of one beta": (
        TrainDQNConfig,
        {**STILL, "is_prioritized": True, "importance_exponent": 1.0},
        "total_steps",
    ),
    "DQN, no schedule": (TrainDQNConfig, {"anneal_updates": 0}, "total_steps"),
    "PQN's epsilon falls by default": (TrainPQNConfig, {"learning_rate_schedule": CONSTANT}, None),
    "PQN's learning rate falls by default": (TrainPQNConfig, STILL, None),
    "PQN, all constant": (TrainPQNConfig, {**STILL, "learning_rate_schedule": CONSTANT}, "total_steps"),
    "a table has one epsilon by default": (TrainQLearningConfig, {}, "total_steps"),
    "a table whose epsilon falls": (TrainQLearningConfig, {"epsilon_start": 1.0}, None),
    "a swept epsilon that falls": (TrainQLearningConfig, {"sweep": ("epsilon_start=0.1,0.5",)}, None),
    "a swept epsilon without a fall": (
        TrainQLearningConfig,
        {"epsilon_fraction": 0.0, "sweep": ("epsilon_start=0.1,0.5",)},
        "total_steps",
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_run_can_be_made_longer_where_no_schedule_follows_its_length(name: str) -> None:
    kind, settings, expected = LENGTHS[name]
    assert kind(out="", **settings).length_setting() == expected


@pytest.mark.parametrize("kind", [TrainDQNConfig, TrainPPOConfig])
@pytest.mark.parametrize("name", ["env_options", "learning_rate_schedule", "num_envs", "nothing"])
def test_what_cannot_be_swept_does_not_change_whether_a_run_can_be_made_longer(kind: Any, name: str) -> None:
    assert kind(out="", sweep=(f"{name}=1",)).length_setting() == kind(out="").length_setting()


def test_an_option_without_a_value_is_refused():
    with pytest.raises(InputError, match="has no value"):
        read_env_options(("size=",))


@pytest.mark.parametrize("changes", [{"num_seeds": 2.5}, {"total_steps": "abc"}, {"ppo": 3}, {"env_options": [1]}])
def test_a_damaged_config_of_a_run_is_refused_by_name(tmp_path, changes):
    folder = RunFolder.create(tmp_path / "run", {"algorithm": "ppo", "out": "x", **changes})
    with pytest.raises(InputError, match=next(iter(changes))):
        load_settings(folder.path)


def test_every_element_of_a_list_in_a_damaged_config_is_checked(tmp_path):
    trunk = {"hidden_sizes": [*[8] * 30, "8"]}
    folder = RunFolder.create(tmp_path / "run", {"algorithm": "ppo", "out": "x", "policy": {"trunk": trunk}})
    with pytest.raises(InputError, match=r"config.yaml: hidden_sizes=\(8, 8, .* is not a value of this setting"):
        load_settings(folder.path)
