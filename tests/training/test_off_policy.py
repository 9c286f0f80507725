"""Completions of other parameters than those that learn: sampled one update ahead, or with int8 weights."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import chex
import numpy as np
import pytest

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.storage import read_metrics
from jaxrl_lm.training.errors import Interrupted
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.train import train_online
from tests.measured import numbers
from tests.training import rewards_for_tests

MakeConfig = Callable[..., PPORunConfig]
REWARDS = "tests.training.rewards_for_tests"
ANSWERS = AnswerConfig(max_new_tokens=5, temperature=0.7)


def test_completions_sampled_ahead_are_one_update_older_and_resume_bit_for_bit(
    make_config: MakeConfig, tmp_path: Any
) -> None:
    answers = replace(ANSWERS, ahead=True)
    config = make_config(answers=answers, reward=f"{REWARDS}:vowels", out=str(tmp_path / "straight"))
    straight = train_online(config)
    curves = {name: curve.values for name, curve in read_metrics(straight).items()}
    errors = curves["ratio/rollout_max_error"]
    assert errors[0] < 1e-4, "the first completions have no older parameters"
    assert np.min(errors[1:]) > 1e-3
    np.testing.assert_allclose(curves["ratio/importance"][0], 1.0, atol=1e-4)
    assert np.max(curves["ratio/first_max_error"]) < 1e-4, "learning starts from the newest parameters"
    assert np.min(curves["time/generate"]) > 0
    broken = replace(config, reward=f"{REWARDS}:terminate_at_third_call", out=str(tmp_path / "broken"))
    with pytest.raises(Interrupted, match="--resume"):
        train_online(broken)
    resumed = train_online(replace(broken, resume=True))
    assert numbers(resumed) == numbers(straight)
    chex.assert_trees_all_equal(from_pretrained(resumed.model_folder)[1], from_pretrained(straight.model_folder)[1])


def test_reward_functions_stay_in_the_main_thread(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some have a time limit by an alarm, which Python allows nowhere else."""
    threads = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        threads.append(threading.current_thread())
        return [float(len(text)) for text in completions]

    monkeypatch.setattr(rewards_for_tests, "vowels", reward)
    train_online(make_config(answers=replace(ANSWERS, ahead=True), num_updates=1, reward=f"{REWARDS}:vowels"))
    assert set(threads) == {threading.main_thread()}


def test_int8_rollouts_are_corrected(make_config: MakeConfig) -> None:
    config = make_config(answers=replace(ANSWERS, weights="int8", max_importance=1.0), num_updates=2)
    curves = {name: curve.values for name, curve in read_metrics(train_online(config)).items()}
    assert np.min(curves["ratio/rollout_max_error"]) > 1e-5
    assert np.max(curves["ratio/first_max_error"]) < 1e-4
    assert np.max(curves["ratio/importance"]) <= 1.0
    assert 0 < np.max(curves["ratio/importance_truncated"]) < 1


def test_settings_that_contradict_each_other_are_refused(make_config: MakeConfig) -> None:
    for answers in (
        replace(ANSWERS, ahead=True),
        replace(ANSWERS, weights="int8"),
        replace(ANSWERS, max_importance=3.0),
    ):
        with pytest.raises(InputError, match=r"rescore=False: answers are corrected.*leave rescore on"):
            make_config(answers=answers, rescore=False)
    with pytest.raises(InputError, match=r"answers\.weights='int8': the weights are quantised already"):
        make_config(answers=replace(ANSWERS, weights="int8"), lora=LoraConfig(rank=1, quantize="nf4"))
