"""Fingerprints of rewards: other files and parameters are noticed, the same ones are not."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from jaxrl_lm.rewards import REWARDS, load_reward, reward_fingerprint
from jaxrl_lm.rewards.learned import LearnedReward
from tests.byte_model import write_byte_model


def test_a_functions_file_is_looked_at_and_built_in_rewards_go_by_their_name(tmp_path: Path) -> None:
    found = []
    for name, text in (("a", "return [1.0]"), ("b", "return [1.0]"), ("c", "return [2.0]")):
        (tmp_path / f"{name}.py").write_text(f"def reward(**_):\n    {text}\n")
        found.append(reward_fingerprint(load_reward(f"{tmp_path / name}.py:reward")))
    assert found[0] == found[1] != found[2]
    assert {reward_fingerprint(reward) for reward in REWARDS.values()} == {0}
    assert reward_fingerprint(max) == 0, "code without a file has none"


PARTIAL = """
from functools import partial

def scaled(scale, **_):
    return [scale * {number}]

reward = partial(partial(scaled, 1.0))
"""
INSTANCE = """
class Scaled:
    def __call__(self, **_):
        return [{number}]

reward = Scaled()
"""
METHOD = INSTANCE + "reward = reward.__call__\n"


@pytest.mark.parametrize("text", [PARTIAL, INSTANCE, METHOD], ids=["partial", "instance", "method"])
def test_the_file_of_what_can_be_called_is_looked_at(tmp_path: Path, text: str) -> None:
    found = []
    for name, number in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / f"{name}.py").write_text(text.format(number=number))
        found.append(reward_fingerprint(load_reward(f"{tmp_path / name}.py:reward")))
    assert 0 != found[0] == found[1] != found[2]


def test_a_learned_rewards_parameters_and_scale_are_looked_at(tmp_path: Path, reward_folder: Path) -> None:
    learned = load_reward(f"model:{reward_folder}")
    assert isinstance(learned, LearnedReward)
    same = load_reward(f"model:{reward_folder}")
    assert reward_fingerprint(learned) == reward_fingerprint(same)
    others = (
        replace(learned, params=jax.tree.map(lambda leaf: leaf + 1, learned.params)),
        replace(learned, scale=replace(learned.scale, offset=learned.scale.offset + 1)),
    )
    for other in others:
        assert reward_fingerprint(other) != reward_fingerprint(learned)


@pytest.fixture
def reward_folder(tmp_path: Path) -> Path:
    from jaxrl_lm import models

    write_byte_model(tmp_path / "base", num_layers=1, model_size=16, num_heads=2, context=32)
    model, params = models.from_pretrained(tmp_path / "base", "reward", key=jax.random.key(0))
    models.save_pretrained(tmp_path / "reward", model, params)
    for file in (tmp_path / "base").glob("*token*"):
        (tmp_path / "reward" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "reward"
