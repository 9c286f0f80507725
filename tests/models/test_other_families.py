"""What single families have of their own: files in other forms, and values of config.json that are refused."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import FAMILIES, from_pretrained, save_pretrained
from tests.models import tiny


def test_pythia_files_with_buffers_and_either_name_of_the_unembedding_load(tmp_path):
    model, params = tiny.random_model("gpt_neox")
    save_pretrained(tmp_path, model, params)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "embed_out.weight" in tensors  # as transformers and older programs name it
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    for name, size in {"bias": (1, 1, 8, 8), "masked_bias": (), "rotary_emb.inv_freq": (1,)}.items():
        tensors[f"gpt_neox.layers.0.attention.{name}"] = np.zeros(size, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    _, loaded = from_pretrained(tmp_path)
    for found, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_fused_weights_are_saved_and_one_of_another_size_is_refused(tmp_path):
    save_pretrained(tmp_path, *tiny.random_model("phi3"))
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.qkv_proj.weight"
    assert tensors[name].shape == (32 + 2 * 16, 32)
    assert not any("gate_proj" in name for name in tensors)
    save_file(tensors | {name: tensors[name][:-1].copy()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lack model\.layers\.1\.self_attn\.\w_proj\.weight.*different models"):
        from_pretrained(tmp_path)


def test_gemma_starts_with_norms_that_change_nothing():
    _, params = tiny.random_model("gemma2")
    assert not np.any(params["backbone"]["norm"]["scale"])


def part_of_head(fraction):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": fraction}}


@pytest.mark.parametrize(
    ("model_type", "options", "words"),
    [
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0 must be above 0"),
        ("gemma2", {"final_logit_softcapping": 0.0}, "logit_softcap=0.0 must be above 0"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attention_softcap=-1.0 must be above 0"),
        ("gemma2", {"sliding_window": None}, "sliding_window=None must be at least 1"),
        ("gpt_neox", part_of_head(2.0), "partial_rotary_factor=2.0 must be above 0 and at most 1"),
        ("gpt_neox", part_of_head(0.4), r"head_dim=8 \* partial_rotary_factor=0.4 must be even"),
        ("phi", {"partial_rotary_factor": 0.1}, r"head_dim=8 \* partial_rotary_factor=0.1 must be"),
    ],
)
def test_values_that_make_no_model_are_named(model_type, options, words):
    config = tiny.hf_config(model_type, **options)
    with pytest.raises(InputError, match=words):
        FAMILIES[model_type].config_from_hf(config.to_dict())
