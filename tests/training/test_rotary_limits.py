"""Reinforcement learning stays where decoding and scoring rotate alike."""

import pytest

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import FAMILIES, CausalLM
from jaxrl_lm.training.online.task import longest_learnable_prompt
from tests.models import tiny


def model_of(**options) -> CausalLM:
    config = tiny.hf_config("llama", max_position_embeddings=64, **options).to_dict()
    return CausalLM(FAMILIES["llama"].config_from_hf(config))


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic"])
def test_longest_prompt(kind):
    options = {} if kind == "default" else {"factor": 4.0}
    model = model_of(rope_parameters={"rope_type": kind, "rope_theta": 1e4, **options})
    context = 64 if kind == "dynamic" else model.config.max_positions
    assert longest_learnable_prompt(model, 8) == context - 8


def test_no_room_for_a_prompt():
    model = model_of(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    assert model.config.max_positions > 64
    with pytest.raises(InputError, match="max_new_tokens=64: this model's rotary frequencies change beyond 64 tokens"):
        longest_learnable_prompt(model, 64)
