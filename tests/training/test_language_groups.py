"""RLOO and GRPO on a language model, end to end on a tiny byte-level model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl_lm.algorithms.group_policy as group_policy
from jaxrl_lm.algorithms import GroupPolicyConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.rewards.scores import RESERVED, TRAINER_GROUPS
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.storage import read_metrics
from jaxrl_lm.training.errors import Interrupted
from jaxrl_lm.training.online.config import GRPORunConfig, RLOORunConfig
from jaxrl_lm.training.online.train import load, make_update, train_online
from tests.measured import numbers
from tests.training import rewards_for_tests

MakeConfig = Callable[..., Any]
REWARDS = "tests.training.rewards_for_tests"


@pytest.fixture(autouse=True)
def _reset_call_count() -> None:
    rewards_for_tests.CALLS["count"] = 0


@pytest.fixture(params=[RLOORunConfig, GRPORunConfig], ids=["rloo", "grpo"])
def make_group_config(
    request: pytest.FixtureRequest, byte_model: Path, prompts_file: Path, tmp_path: Path
) -> MakeConfig:
    """Builds a configuration; what is given replaces the small defaults."""

    def make(**changes: Any) -> Any:
        weight = "sum" if request.param is RLOORunConfig else "mean"
        settings: dict[str, Any] = {
            "model": str(byte_model),
            "prompts": str(prompts_file),
            "reward": "vowels",
            "out": str(tmp_path / "run"),
            "num_updates": 4,
            "batch_size": 4,
            "group_size": 2,
            "answers": AnswerConfig(max_new_tokens=5, temperature=0.7),
            "policy": GroupPolicyConfig(learning_rate=1e-2, num_minibatches=2, token_weight=weight),
            "save_every": 10,
            "num_samples": 2,
        }
        return request.param(**(settings | changes))

    return make


def test_terminated_run_resumes_bit_for_bit_and_leaves_the_whole_folder(
    make_group_config: MakeConfig, tmp_path: Path
) -> None:
    straight = train_online(make_group_config(reward=f"{REWARDS}:vowels", out=str(tmp_path / "straight")))
    for member in ("report.html", "plots/kl.png", "plots/reward.png", "model/config.json"):
        assert (straight.path / member).is_file(), member
    assert not (straight.model_folder / "value_head.safetensors").exists()
    curves = read_metrics(straight)
    assert np.max(curves["ratio/first_max_error"].values) < 1e-4
    assert np.max(curves["ratio/rollout_max_error"].values) < 1e-4
    assert curves["kl/answer"].values[0] == pytest.approx(0.0, abs=1e-5)
    assert np.min(curves["flops/update"].values) > 0
    np.testing.assert_allclose(curves["learning_rate"].values, [1e-2, 7.5e-3, 5e-3, 2.5e-3], rtol=1e-5)
    for group, _, rest in (name.partition("/") for name in curves):
        assert group in TRAINER_GROUPS or rest in RESERVED or not rest, "rewards must not log this name"
    broken = make_group_config(reward=f"{REWARDS}:terminate_at_third_call", out=str(tmp_path / "broken"))
    with pytest.raises(Interrupted, match="--resume"):
        train_online(broken)
    resumed = train_online(replace(broken, resume=True))
    assert numbers(resumed) == numbers(straight)
    chex.assert_trees_all_equal(from_pretrained(resumed.model_folder)[1], from_pretrained(straight.model_folder)[1])


def test_log_probs_of_decoding_serve_as_well_as_those_of_scoring(make_group_config: MakeConfig, tmp_path: Path) -> None:
    curves = {}
    for rescore in (True, False):
        config = make_group_config(rescore=rescore, num_updates=2, out=str(tmp_path / str(rescore)))
        curves[rescore] = read_metrics(train_online(config))
    assert np.max(curves[False]["ratio/first_max_error"].values) < 1e-4
    assert "ratio/rollout_max_error" not in curves[False]
    for name in ("loss/policy", "kl/answer", "reward/with_penalty", "loss/grad_norm"):
        np.testing.assert_allclose(curves[False][name].values, curves[True][name].values, rtol=1e-3, atol=1e-5)


def test_groups_are_compared_and_the_penalty_is_where_it_belongs(
    make_group_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_group_config(kl_coefficient=0.5)
    loaded = load(config)
    batches = []

    def record(loss: Any, carry: Any, batch: Any, key: Any, **settings: Any) -> Any:
        batches.append(batch)
        return carry, {"ratio/max_error": jnp.zeros((1, 1))}

    monkeypatch.setattr(group_policy, "run_epochs", record)
    scores = jnp.array([3.0, 1.0, 2.0, 2.5])
    base = jax.tree.map(jnp.copy, loaded.params)
    moved = jax.tree.map(lambda p: p * 1.05, loaded.params)
    generation = loaded.task.answer(moved, np.array([0, 0, 2, 2]), jax.random.key(1))
    state = replace(loaded.init_state(), params=moved)
    _, metrics = loaded.learner.evaluate_and_update(state, base, generation, scores, jax.random.key(2))
    batch = batches[0]
    prompts = np.asarray(generation.sequences)[:, : -config.answers.max_new_tokens]
    assert np.array_equal(prompts[0], prompts[1])
    assert np.array_equal(prompts[2], prompts[3])
    mask = np.asarray(batch.mask, bool)
    ratio = np.where(mask, np.asarray(batch.log_probs - batch.reference_log_probs), 0.0).sum(axis=-1)
    assert np.max(np.abs(ratio)) > 1e-3
    if isinstance(config, RLOORunConfig):
        earned = scores - 0.5 * ratio
        expected = [earned[0] - earned[1], earned[1] - earned[0], earned[2] - earned[3], earned[3] - earned[2]]
    else:
        steps = [(2.0 / np.sqrt(2.0), 2.0), (-0.5 / np.sqrt(2.0), -0.5)]  # unbiased std, difference
        expected = [sign * gap / 2 / (abs(std) + 1e-4) for std, gap in steps for sign in (1, -1)]
    np.testing.assert_allclose(batch.advantages[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert float(metrics["kl/answer"]) == pytest.approx(ratio.mean(), abs=1e-5)


def test_reward_rises(make_group_config: MakeConfig) -> None:
    config = make_group_config(num_updates=25, batch_size=32, group_size=4, kl_coefficient=0.0)
    config = replace(config, policy=replace(config.policy, anneal_updates=0))
    loaded = load(config)
    update, state, rewards = make_update(loaded), loaded.init_state(), []
    for step in range(25):
        state, metrics = update(state, step)
        rewards.append(metrics["reward/mean"])
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size=1 must be at least 2"),
        ({"group_size": 3}, "group_size=3 does not divide batch_size=4"),
        ({"kl_coefficient": -1.0}, "kl_coefficient=-1"),
        ({"answers": AnswerConfig(score_at="after_end")}, "answers.score_at"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    make_group_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_group_config(**changes)
