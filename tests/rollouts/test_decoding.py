"""Decoding in stages: a batch that shrinks and a cache that grows draw what one program draws."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.models.stack import stack_layers
from jaxrl_lm.rollouts import SamplingConfig, decoding, generate
from jaxrl_lm.rollouts.decoding import Stages, decode_in_stages, plan_stages
from jaxrl_lm.rollouts.generation import generation_program
from tests.models import tiny

BATCH, ANSWER = 24, 12
STOPS = tuple(range(0, tiny.VOCAB_SIZE, 8))
CONFIG = SamplingConfig(max_new_tokens=ANSWER, temperature=0.7, stop_tokens=STOPS, pad_token=5000)
KEY = jax.random.key(3)


def prompts(num, width=5):
    mask = np.arange(width) >= width - 1 - np.arange(num)[:, None] % width
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB_SIZE, (num, width))
    return jnp.asarray(np.where(mask, ids, 5000), jnp.int32), jnp.asarray(mask, jnp.int32)


@pytest.fixture(params=["unrolled", "scanned"])
def model_and_params(request, tiny_llama):
    model, params = tiny_llama
    if request.param == "unrolled":
        return model, params
    return model.clone(is_scanned=True), stack_layers(params, model.family.layers)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_stages_draw_what_one_program_draws(model_and_params, monkeypatch, num_parts):
    model, params = model_and_params
    passed = []
    for name in ("_shrink", "_grow"):
        monkeypatch.setattr(decoding, name, record(getattr(decoding, name), passed, name))
    stages = Stages(rows=(24, 12, 6, 2), slots=(7, 10, 17), num_parts=num_parts)
    config = replace(CONFIG, repetition_penalty=1.3)
    ids, mask = prompts(BATCH)
    keys = jax.vmap(lambda row: jax.random.fold_in(KEY, row))(jnp.arange(BATCH))
    table, num_steps = decode_in_stages(model, params, ids, mask, keys, config, stages)
    expected = generation_program(model, params, ids, mask, KEY, config, False)
    assert set(passed) == {"_shrink", "_grow"}
    np.testing.assert_array_equal(table.tokens, expected.actions)
    np.testing.assert_array_equal(table.mask, expected.response_mask)
    np.testing.assert_allclose(table.log_probs, expected.log_probs, atol=1e-5)
    assert int(num_steps) == int(expected.num_steps)


def test_a_large_batch_is_decoded_in_stages(tiny_llama, monkeypatch):
    passed = []
    monkeypatch.setattr(decoding, "_shrink", record(decoding._shrink, passed, "_shrink"))
    same(
        generate(*tiny_llama, *prompts(BATCH), KEY, CONFIG),
        generation_program(*tiny_llama, *prompts(BATCH), KEY, CONFIG, True),
    )
    assert passed == ["_shrink"]


def test_a_batch_is_not_staged_when_that_saves_nothing():
    no_stop = replace(CONFIG, stop_tokens=())
    assert plan_stages(BATCH, 5, no_stop).is_one
    assert plan_stages(8, 5, CONFIG).is_one
    assert plan_stages(64, 30, replace(CONFIG, max_new_tokens=128)).rows == (64, 32, 16, 8)


def test_each_part_of_a_mesh_keeps_a_row(monkeypatch):
    monkeypatch.setattr(decoding, "current_mesh", lambda: "a mesh")
    monkeypatch.setattr(decoding, "num_batch_parts", lambda _: 8)
    assert plan_stages(8, 5, CONFIG).rows == (8,)
    assert plan_stages(24, 5, CONFIG).rows == (24, 16, 8)
    assert plan_stages(20, 5, CONFIG).rows == (20, 10)  # not split: 8 does not divide it


def test_the_slots_of_the_last_stage_hold_every_completion_and_few_programs_serve_all_prompts():
    config = replace(CONFIG, max_new_tokens=300)
    for width in range(1, 200):
        slots = plan_stages(64, width, config).slots
        assert width < slots[0]
        assert slots[-1] >= width + 300
        assert all(size % decoding.SLOT_MULTIPLE == 0 for size in slots)


@pytest.mark.parametrize("num_prompts", [2, 8])
def test_completions_of_one_prompt_are_those_of_a_batch_with_the_prompt_repeated(tiny_llama, num_prompts):
    ids, mask = prompts(num_prompts)
    together = generate(*tiny_llama, ids, mask, KEY, CONFIG, per_prompt=3)
    repeated = generate(*tiny_llama, *(jnp.repeat(x, 3, axis=0) for x in (ids, mask)), KEY, CONFIG)
    same(together, repeated)
    assert len({tuple(row) for row in np.asarray(together.actions)[:3].tolist()}) == 3


def record(function, passed, name):
    def call(*args):
        passed.append(name)
        return function(*args)

    return call


def same(actual, expected):
    for field in ("sequences", "attention_mask", "response_mask"):
        np.testing.assert_array_equal(getattr(actual, field), getattr(expected, field))
    np.testing.assert_allclose(actual.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_allclose(actual.values, expected.values, atol=1e-5)
    assert int(actual.num_steps) == int(expected.num_steps)
