"""Settings of online runs: which of them can be made longer."""

from typing import Any

import pytest

from jaxrl_lm.algorithms import GroupPolicyConfig, PPOConfig
from jaxrl_lm.algorithms.schedules import ScheduleConfig
from jaxrl_lm.training.online.config import GRPORunConfig, PPORunConfig, RLOORunConfig

CONSTANT = PPOConfig(learning_rate_schedule=ScheduleConfig())


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (PPORunConfig, {}, None),
        (PPORunConfig, {"ppo": CONSTANT}, "num_updates"),
        (PPORunConfig, {"ppo": PPOConfig(anneal_updates=0)}, "num_updates"),
        (RLOORunConfig, {}, None),
        (GRPORunConfig, {"policy": GroupPolicyConfig(anneal_updates=9)}, "num_updates"),
    ],
)
def test_a_run_can_be_made_longer_where_no_schedule_follows_its_length(
    kind: Any, settings: dict[str, Any], expected: str | None
) -> None:
    config = kind(model="", prompts="", reward="", out="", **settings)
    assert config.length_setting() == expected
