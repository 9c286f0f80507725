"""Context extensions of rotary positions: frequencies by hand and as transformers has them, and whole models beyond
the original context.
"""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.models.rotary import RotaryConfig, frequencies, rotary_from_hf, rotary_table, rotate
from tests.models import tiny

POSITIONS = 8  # the original context; texts are as long as tiny.WIDTH
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": POSITIONS}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": POSITIONS,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [1.0, 3.0, 5.0, 8.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Each key of transformers' RopeParameters that changes anything is changed in one of these.
CASES = {
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    "dynamic": DYNAMIC,
    "dynamic_factor": DYNAMIC | {"factor": 1.5, "rope_theta": 500.0},
    "dynamic_partial": DYNAMIC | {"partial_rotary_factor": 0.5},
    "yarn": YARN,
    "yarn_partial": YARN | {"partial_rotary_factor": 0.5},
    "yarn_large": YARN | {"original_max_position_embeddings": 4096, "rope_theta": 1e6},
    "yarn_no_factor": YARN | {"factor": None, "original_max_position_embeddings": 4},
    "yarn_betas": YARN | {"beta_fast": 2.0, "beta_slow": 0.25},
    "yarn_not_truncated": YARN | {"truncate": False, "original_max_position_embeddings": 64},
    "yarn_attention_factor": YARN | {"attention_factor": 1.7},
    "yarn_mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn_mscale_alone": YARN | {"mscale": 0.7},
    "yarn_factor_below_1": YARN | {"factor": 0.5},
    "longrope": LONGROPE,
    "longrope_no_factor": {name: value for name, value in LONGROPE.items() if name != "factor"},
    "longrope_attention_factor": LONGROPE | {"attention_factor": 1.3, "original_max_position_embeddings": 4},
    "llama3": LLAMA3,
    "llama3_bands": LLAMA3 | {"low_freq_factor": 0.5, "high_freq_factor": 2.0, "original_max_position_embeddings": 512},
}


def llama_config(rope, **options):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": POSITIONS}
    return LlamaConfig(**sizes, rope_parameters=dict(rope), **options)


@pytest.mark.parametrize("length", [POSITIONS - 1, POSITIONS, POSITIONS + 1, 10 * POSITIONS])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_equal_those_of_transformers(case, length):
    theirs = llama_config(CASES[case])
    expected, attention_factor = ROPE_INIT_FUNCTIONS[CASES[case]["rope_type"]](theirs, None, torch.tensor(length))
    ours = rotary_from_hf(theirs.to_dict(), is_partial="partial_rotary_factor" in CASES[case])
    np.testing.assert_allclose(frequencies(ours, 8, length), expected.numpy(), rtol=1e-6)
    assert ours.attention_factor == pytest.approx(attention_factor, rel=1e-12)


def test_yarn_by_hand():
    # theta e^8 and 16 dimensions: pair i turns 1000 e^-i / (2 pi) times in the original 1000 positions. Those that turn
    # more often than pair 1 are kept, those that turn less often than pair 3 divided by 2, pair 2 is midway between.
    config = RotaryConfig(
        theta=math.exp(8),
        kind="yarn",
        factor=2.0,
        original_positions=1000,
        beta_fast=1000 * math.exp(-1) / (2 * math.pi),
        beta_slow=1000 * math.exp(-3) / (2 * math.pi),
        is_truncated=False,
    )
    kept = np.array([1, 1, 0.5, 0, 0, 0, 0, 0])
    expected = np.exp(-np.arange(8)) * (kept + (1 - kept) / 2)
    np.testing.assert_allclose(frequencies(config, 16), expected, rtol=1e-6)
    yarn = rotary_from_hf({"max_position_embeddings": 8, "rope_parameters": YARN})
    assert yarn.attention_factor == pytest.approx(1 + 0.1 * math.log(4))


def test_dynamic_by_hand():
    # 30 tokens on a context of 10, factor 4: theta grows by (4 * 30 / 10 - 3)^(4 / 2) = 81; the pairs of 4 dimensions
    # turn by 1 and theta^(-1/2).
    config = RotaryConfig(theta=100.0, kind="dynamic", factor=4.0, original_positions=10)
    np.testing.assert_allclose(frequencies(config, 4, 30), [1.0, 1 / (10 * 9)], rtol=1e-6)
    np.testing.assert_allclose(frequencies(config, 4, 10), [1.0, 1 / 10], rtol=1e-6)


def test_part_of_a_head_is_rotated_and_the_rest_is_as_it_was():
    x = jnp.arange(1.0, 7.0)[None, None, None]
    table = rotary_table(RotaryConfig(theta=100.0, fraction=1 / 3), jnp.array([[3]]), 6, 5)
    cos, sin = math.cos(3), math.sin(3)
    np.testing.assert_allclose(rotate(x, table)[0, 0, 0], [cos - 2 * sin, 2 * cos + sin, 3, 4, 5, 6], rtol=1e-6)


def test_attention_factor_multiplies_cosine_and_sine():
    plain, scaled = (RotaryConfig(theta=100.0, kind="yarn", attention_factor=factor) for factor in (1.0, 1.5))
    tables = [rotary_table(config, jnp.arange(5)[None], 8, 5) for config in (plain, scaled)]
    for one, other in zip(*tables, strict=True):
        np.testing.assert_allclose(1.5 * one, other, rtol=1e-6)


def test_every_kind_and_key_of_transformers_is_known():
    covered = {name for rope in CASES.values() for name in rope}
    # mrope_section: pictures and films.
    # Older versions of transformers know fewer keys.
    assert set(RopeParameters.__annotations__) - covered <= {"mrope_section"}
    assert set(ROPE_INIT_FUNCTIONS) - {rope["rope_type"] for rope in CASES.values()} <= {"proportional"}  # refused


@pytest.mark.parametrize(
    ("rope", "options", "words"),
    [
        ({"rope_type": "proportional", "factor": 2.0}, {}, r"rope_type='proportional' is not supported.*yarn"),
        (DYNAMIC | {"partial_rotary_factor": 0.5}, {}, "partial_rotary_factor=0.5"),
        (LONGROPE | {"long_factor": [1.0]}, {}, "long_factor has 1 numbers, but head_dim=8 needs 4"),
        (DYNAMIC | {"factor": 0.0}, {}, "factor=0.0 must be above 0"),
        (DYNAMIC | {"rope_theta": 1.0}, {}, r"rope_theta=1\.0 must be above 1"),
        (DYNAMIC, {"head_dim": 2}, "head_dim=2 must be even"),
        (LLAMA3 | {"high_freq_factor": 1.0}, {}, r"high_freq_factor=1\.0 must be above low_freq_factor=1\.0"),
        ({"full_attention": YARN}, {}, "separate values for full_attention"),
    ],
)
def test_rotary_embedding_that_is_not_supported_is_refused_by_name(tmp_path, rope, options, words):
    config = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "rope_parameters": rope, **options}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        from_pretrained(tmp_path)


@pytest.fixture(scope="module", params=["yarn", "dynamic", "longrope"])
def extended(request, tmp_path_factory):
    """Hugging Face's model and ours of an old-style config.json, whose original context is shorter than the texts."""
    rope = {"yarn": YARN, "dynamic": DYNAMIC, "longrope": LONGROPE}[request.param]
    rope = {("type" if name == "rope_type" else name): value for name, value in rope.items()}
    folder = tmp_path_factory.mktemp(request.param)
    tiny.torch_model("llama").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"max_position_embeddings": POSITIONS, "rope_scaling": rope, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config))
    theirs, _ = tiny.torch_load(AutoModelForCausalLM, folder)
    return theirs, *from_pretrained(folder)


def test_logits_beyond_the_original_context_equal_those_of_hugging_face(extended):
    theirs, model, params = extended
    ids, mask = tiny.padded_batch()
    plain = tiny.torch_logits(tiny.torch_model("llama"), ids, mask)
    expected = tiny.torch_logits(theirs, ids, mask)
    assert np.max(np.abs(expected - plain)[mask == 1]) > 0.1
    actual = np.asarray(tiny.forward(model, params, ids, mask).logits)
    np.testing.assert_allclose(actual[mask == 1], expected[mask == 1], rtol=0, atol=1e-4)
    assert model.config.max_positions == 4 * POSITIONS


def test_generation_across_the_original_context_equals_that_of_hugging_face(extended):
    theirs, model, params = extended
    ids, _ = tiny.padded_batch()
    expected, cache = [], None
    with torch.no_grad():
        for start, stop in [(0, 6), *((slot, slot + 1) for slot in range(6, tiny.WIDTH))]:
            output = theirs(torch.tensor(ids[:1, start:stop]).long(), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            expected.append(output.logits.numpy())
    ours, actual = model.config.init_cache(1, tiny.WIDTH), []
    for start, stop in [(0, 6), *((slot, slot + 1) for slot in range(6, tiny.WIDTH))]:
        output = tiny.forward(model, params, ids[:1, start:stop], np.ones((1, stop - start), np.int32), ours)
        ours = output.cache
        actual.append(output.logits)
    np.testing.assert_allclose(np.concatenate(actual, 1), np.concatenate(expected, 1), rtol=0, atol=1e-4)
