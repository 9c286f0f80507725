"""Every field of config.json: honoured as Hugging Face's class does, refused by name, or without effect on the output.

A field that a new version of transformers adds to a configuration class fails `test_every_field_is_classified`.
"""

import dataclasses
import json
import zlib
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.activations import ACT2FN

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import FAMILIES, from_pretrained
from jaxrl_lm.models.config import ACTIVATIONS
from jaxrl_lm.models.families import family_of
from jaxrl_lm.models.pretrained import read_config

IDS = np.random.default_rng(0).integers(1, 50, (1, 12))

_SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16,
}
BASES = {
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "bert": {**{name: _SIZES[name] for name in _SIZES if "head_dim" not in name}, "id2label": {"0": "a"}},
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma2", "gemma3_text"), _SIZES),
    "phi3": {**_SIZES, "pad_token_id": 0},  # the default is outside this vocabulary
    "qwen3_moe": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    "phi": {name: _SIZES[name] for name in _SIZES if name != "head_dim"},
    "gpt_neox": {name: _SIZES[name] for name in _SIZES if name not in ("head_dim", "num_key_value_heads")},
}

FORM_ONLY = {"return_dict"}  # whether Hugging Face's classes return a tuple: as a default it breaks them

# Field -> another value. Without effect, in Hugging Face's class too, all of them together:
_INERT = {
    "transformers_version": "4.40.0",
    "architectures": ["Other"],
    "output_hidden_states": True,
    "dtype": "bfloat16",  # of the file; parameters take the dtype that `from_pretrained` is asked for
    "chunk_size_feed_forward": 4,
    "is_encoder_decoder": True,
    "label2id": {"b": 0},
    "problem_type": "regression",
    "use_cache": False,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "eos_token_id": [7, 8],
    "initializer_range": 0.5,
}
_INERT_LLAMA = _INERT | {
    "id2label": {"0": "a"},
    "attention_dropout": 0.5,  # nothing is dropped here, in training either
    "partial_rotary_factor": 0.5,  # with rope_type=default
    "mlp_bias": True,
    "attention_bias": True,
    "final_logit_softcapping": 1.0,
    "logit_scale": 3.0,
    "is_decoder": True,
}
# Combinations in which each field matters: left out, it changes Hugging Face's output.
_HONOURED_LLAMA = [
    {
        "vocab_size": 60,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "hidden_act": "gelu",
        "rms_norm_eps": 0.5,
        "tie_word_embeddings": True,
        "head_dim": 4,
        "rope_theta": 100.0,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
        "max_position_embeddings": 8,  # below the number of tokens
    },
]
_WITHOUT_WINDOW = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}  # a Qwen that fails
_HONOURED_QWEN = [
    *_HONOURED_LLAMA,
    {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    {"use_sliding_window": True, **_WITHOUT_WINDOW},
]
_WINDOWS_IN_TURN = {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]}
_HONOURED_GEMMA = {
    name: value for name, value in _HONOURED_LLAMA[0].items() if name not in ("rope_theta", "hidden_act")
}
_HONOURED_GEMMA |= {
    "hidden_activation": "relu",
    "tie_word_embeddings": False,
    "attention_bias": True,
    "query_pre_attn_scalar": 3,
    "final_logit_softcapping": 1.0,
}
_INERT_GEMMA = _INERT | {"id2label": {"0": "a"}, "attention_dropout": 0.5}
_NEOX = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "hidden_act": "relu",
    "layer_norm_eps": 0.5,
    "tie_word_embeddings": True,
}
_DROPOUT_PHI = dict.fromkeys(("resid_pdrop", "embd_pdrop"), 0.5)
INERT = {
    "gpt2": _INERT
    | {
        "id2label": {"0": "a"},
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), 0.5),
        "summary_type": "last",
        "summary_use_proj": False,
        "summary_activation": "tanh",
        "summary_proj_to_labels": False,
        "reorder_and_upcast_attn": True,  # an order of float32 products
    },
    "llama": {name: value for name, value in _INERT_LLAMA.items() if name not in ("attention_bias", "mlp_bias")}
    | {"pretraining_tp": 2, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": _INERT_LLAMA,
    "ministral": _INERT_LLAMA,
    "qwen2": _INERT_LLAMA,
    "qwen3": {name: value for name, value in _INERT_LLAMA.items() if name != "attention_bias"},
    "qwen3_moe": {name: value for name, value in _INERT_LLAMA.items() if name != "attention_bias"}
    | {"router_aux_loss_coef": 0.5},
    "gemma2": _INERT_GEMMA,
    "gemma3_text": _INERT_GEMMA | {"attn_logit_softcapping": 1.0},
    "phi": _INERT_GEMMA | _DROPOUT_PHI,
    "phi3": _INERT_GEMMA | _DROPOUT_PHI,
    "gpt_neox": _INERT_GEMMA | {**dict.fromkeys(("hidden_dropout", "classifier_dropout"), 0.5), "is_decoder": True},
    "bert": _INERT
    | {
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.5),
        "tie_word_embeddings": False,
    },
}
HONOURED = {
    "gpt2": [
        {
            "vocab_size": 60,
            "n_positions": 20,
            "n_embd": 24,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 20,
            "activation_function": "relu",
            "layer_norm_epsilon": 0.5,
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        }
    ],
    "llama": [*_HONOURED_LLAMA, {"attention_bias": True, "mlp_bias": True}],
    "mistral": [*_HONOURED_LLAMA, {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}],
    "ministral": [*_HONOURED_LLAMA, {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}],
    "qwen2": _HONOURED_QWEN,
    "qwen3": [*_HONOURED_QWEN, {"attention_bias": True}],
    "qwen3_moe": [
        {name: value for name, value in _HONOURED_LLAMA[0].items() if name != "intermediate_size"}
        | {"moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": True},
        _HONOURED_LLAMA[1] | {"attention_bias": True},
        {"use_sliding_window": True, "sliding_window": 3},
        {"mlp_only_layers": [0], "intermediate_size": 20},
        {"decoder_sparse_step": 2},
        {"num_experts": 0},
    ],
    "gemma2": [
        _HONOURED_GEMMA | {"attn_logit_softcapping": 0.5, "rope_theta": 100.0},
        _HONOURED_LLAMA[1],
        _WINDOWS_IN_TURN,
    ],
    "gemma3_text": [
        _HONOURED_GEMMA
        | {
            "rope_theta": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "sliding_window_pattern": 1,
        },
        {"rope_local_base_freq": 2.0, "sliding_window_pattern": 2, "sliding_window": 3},
        _WINDOWS_IN_TURN
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "linear", "rope_theta": 10.0, "factor": 2.0},
            },
            "max_position_embeddings": 8,
        },
    ],
    "phi": [
        _NEOX | {"num_key_value_heads": 1, "qk_layernorm": True, "rope_theta": 100.0, "partial_rotary_factor": 0.75},
        {
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 100.0,
                "factor": 2.0,
                "partial_rotary_factor": 0.5,
            },
            "max_position_embeddings": 8,
        },
    ],
    "phi3": [
        {name: value for name, value in _HONOURED_LLAMA[0].items() if name != "rope_scaling"},
        {"sliding_window": 3, "partial_rotary_factor": 0.5},
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0, 1.5, 2.0, 2.5],
                "long_factor": [1.0, 3.0, 5.0, 8.0],
            },
            "original_max_position_embeddings": 8,
            "max_position_embeddings": 32,
        },
    ],
    "gpt_neox": [
        _NEOX | {"rotary_pct": 0.5, "rotary_emb_base": 100.0, "use_parallel_residual": False, "attention_bias": False},
        {
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 100.0,
                "factor": 2.0,
                "partial_rotary_factor": 0.5,
            },
            "max_position_embeddings": 8,
        },
    ],
    "bert": [
        {
            "vocab_size": 60,
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 20,
            "hidden_act": "relu",
            "max_position_embeddings": 20,
            "type_vocab_size": 3,
            "layer_norm_eps": 0.5,
        }
    ],
}
# Field -> a value, and what the message says.
_REFUSED = {
    "quantization_config": ({"quant_method": "gptq", "bits": 4}, "quantization_config.*gptq"),
    "per_layer_config": ({"0": {"intermediate_size": 20}}, "per_layer_config"),
}
REFUSED = {
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "qwen3"), _REFUSED),
    **dict.fromkeys(("phi", "phi3", "gpt_neox"), _REFUSED),
    **dict.fromkeys(
        ("gemma2", "gemma3_text"), _REFUSED | {"use_bidirectional_attention": (True, "use_bidirectional_attention")}
    ),
    "qwen3_moe": _REFUSED | {"output_router_logits": (True, "output_router_logits")},
    "gpt2": _REFUSED | {"add_cross_attention": (True, "add_cross_attention")},
    "bert": _REFUSED
    | {
        "is_decoder": (True, "is_decoder"),
        "add_cross_attention": (True, "add_cross_attention"),
        "position_embedding_type": ("relative_key", "position_embedding_type"),
        "id2label": ({"0": "a", "1": "b"}, "num_labels=1"),
    },
}


def write_model(folder, model_type, options):
    """A folder with config.json as written by hand and random weights; returns Hugging Face's model of it.

    A parameter's numbers depend on its name and shape alone, so that models of like shapes have the same.
    """
    config = json.dumps({"model_type": model_type, **BASES[model_type], **options})
    (folder / "config.json").write_text(config)
    auto = AutoModelForCausalLM if FAMILIES[model_type].is_causal else AutoModelForSequenceClassification
    model = auto.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 and name.endswith("weight") else 0.3 * noise)
        tensors = {name: parameter.clone() for name, parameter in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def shapes_of(model):
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def torch_output(model):
    with torch.no_grad():
        options = {"use_cache": False} if hasattr(model, "lm_head") else {}
        return model(torch.tensor(IDS), **options)[0].numpy()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_is_classified(model_type):
    config_class = type(AutoConfig.for_model(model_type))
    fields = {field.name for field in dataclasses.fields(config_class)}
    honoured = {name for combination in HONOURED[model_type] for name in combination}
    classified = [honoured, set(REFUSED[model_type]), set(INERT[model_type]), FORM_ONLY]
    assert fields - set.union(*classified) == set()
    assert sum(map(len, classified)) == len(set.union(*classified))  # no field has two entries


@pytest.mark.parametrize(
    ("model_type", "combination"),
    [
        pytest.param(model_type, combination, id=f"{model_type}-{next(iter(combination))}")
        for model_type, combinations in HONOURED.items()
        for combination in combinations
    ],
)
def test_honoured_fields_change_the_output_as_in_hugging_face(tmp_path, model_type, combination):
    model = write_model(tmp_path, model_type, combination)
    expected, shapes = torch_output(model), shapes_of(model)
    ours, params = from_pretrained(tmp_path, None if FAMILIES[model_type].is_causal else "reward")
    output: Any = jax.jit(ours.apply)({"params": params}, IDS)
    actual = output.logits if FAMILIES[model_type].is_causal else output.scores[:, None]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    for field in combination:  # what would be computed if the field were not read is something else
        others = {name: value for name, value in combination.items() if name != field}
        without = write_model(tmp_path, model_type, others)
        if shapes_of(without) == shapes and others != _WITHOUT_WINDOW:
            assert np.max(np.abs(torch_output(without) - expected)) > 1e-3, field


def test_activations_are_those_of_transformers():
    refused = {"gelu_10", "laplace", "prelu", "sqrtsoftplus", "xielu"}
    assert ACT2FN.keys() - ACTIVATIONS.keys() == refused
    x = np.linspace(-8, 8, 101, dtype=np.float32)
    for name, activation in ACTIVATIONS.items():
        expected = ACT2FN[name](torch.tensor(x)).numpy()
        np.testing.assert_allclose(activation(x), expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fields_without_effect_here_have_none_in_hugging_face(tmp_path, model_type):
    config = read(tmp_path, model_type, {})
    expected = torch_output(write_model(tmp_path, model_type, {}))
    output = torch_output(write_model(tmp_path, model_type, INERT[model_type]))
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
    assert read(tmp_path, model_type, INERT[model_type]) == config


def read(folder, model_type, options):
    """Our configuration, but for the copy of Hugging Face's."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **BASES[model_type], **options}))
    raw = read_config(folder)
    config = family_of(raw["model_type"]).config_from_hf(raw)
    ours = dataclasses.replace(config, hf_json="")
    return dataclasses.replace(ours, init_std=0.0)  # of new parameters only


@pytest.mark.parametrize(
    ("model_type", "field", "value", "words"),
    [(model_type, field, *case) for model_type, fields in REFUSED.items() for field, case in fields.items()],
)
def test_refused_field_is_named(tmp_path, model_type, field, value, words):
    options = {} if field != "id2label" else {field: value}
    write_model(tmp_path, model_type, options)
    config = {"model_type": model_type, **BASES[model_type], field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        from_pretrained(tmp_path, None if FAMILIES[model_type].is_causal else "reward")
