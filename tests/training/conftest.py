"""A byte-level model, prompts and a configuration small enough to train in a second an update."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jaxrl_lm.algorithms import KLConfig, PPOConfig
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.training.online.config import PPORunConfig
from tests.byte_model import write_byte_model

END_OF_TEXT_ID, SECOND_STOP = 256, 200


@pytest.fixture(scope="module", autouse=True)
def _pictures_drawn_once(pictures_drawn_once: None) -> None:
    """Many runs here are alike."""


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny GPT-2 over bytes, which two tokens end, as many chat models."""
    folder = tmp_path_factory.mktemp("models") / "byte-gpt2"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    content = {"eos_token_id": [END_OF_TEXT_ID, SECOND_STOP], "do_sample": True, "temperature": 0.1, "top_k": 1}
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts of different lengths."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("ab\nabcde\na\n")
    return file


@pytest.fixture(scope="session")
def make_config_in(byte_model: Path, prompts_file: Path) -> Callable[..., PPORunConfig]:
    """Builds a configuration of a run in a given folder; what is given replaces the small defaults."""

    def make(folder: Path, **changes: Any) -> PPORunConfig:
        settings: dict[str, Any] = {
            "model": str(byte_model),
            "prompts": str(prompts_file),
            "reward": "vowels",
            "out": str(folder / "run"),
            "num_updates": 4,
            "batch_size": 4,
            "num_samples": 2,
            "save_every": 100,
            "answers": AnswerConfig(max_new_tokens=5, temperature=0.7),
            "kl": KLConfig(coefficient=0.1, target=0.5, horizon=20),
            "ppo": PPOConfig(learning_rate=1e-2, num_epochs=2, num_minibatches=2),
        }
        return PPORunConfig(**(settings | changes))

    return make


@pytest.fixture
def make_config(make_config_in: Callable[..., PPORunConfig], tmp_path: Path) -> Callable[..., PPORunConfig]:
    """The same in a folder of the test's own."""
    return partial(make_config_in, tmp_path)
