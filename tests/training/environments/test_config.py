"""Settings of runs in environments: how options are read, defaults that can be learned from, what is saved."""

from dataclasses import replace
from typing import Any

import pytest

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


def test_a_run_can_be_made_longer_where_nothing_follows_its_length() -> None:
    config = TrainPPOConfig(out="")
    assert config.length_setting() is None
    assert replace(config, ppo=replace(config.ppo, anneal_updates=0)).length_setting() == "total_steps"


def test_an_option_without_a_value_is_refused():
    with pytest.raises(InputError, match="has no value"):
        read_env_options(("size=",))


@pytest.mark.parametrize("changes", [{"num_seeds": 2.5}, {"total_steps": "abc"}, {"ppo": 3}, {"env_options": [1]}])
def test_a_damaged_config_of_a_run_is_refused_by_name(tmp_path, changes):
    folder = RunFolder.create(tmp_path / "run", {"algorithm": "ppo", "out": "x", **changes})
    with pytest.raises(InputError, match=next(iter(changes))):
        load_settings(folder.path)
