"""Tiny random models: ours alone, and Hugging Face's torch classes for parity."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from jaxrl_lm.models import FAMILIES, CausalLM, init_params

VOCAB_SIZE = 101
PAD_TOKEN = 100  # never drawn by `padded_batch`
WIDTH = 11

_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,  # at head size 8 some pairs are kept, some blended, some stretched
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,  # below WIDTH
    "beta_fast": 2.0,
    "beta_slow": 0.5,
}

_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.0, 3.0, 5.0],
}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}

# Of families that are plain only with them.
_PLAIN: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    # Caps of about the size of the logits, and windows below WIDTH.
    "gemma2": {
        "head_dim": 12,
        "query_pre_attn_scalar": 10,
        "sliding_window": 3,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "head_dim": 12,
        "query_pre_attn_scalar": 10,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": _LINEAR,
        },
        "num_key_value_heads": 2,
    },
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25}},
    "phi3": {"original_max_position_embeddings": 64, "rope_parameters": _LONGROPE, "num_key_value_heads": 2},
}

DECODERS = [model_type for model_type, family in FAMILIES.items() if family.is_causal]

# Name of a variant -> model_type and what differs from the family's plain form.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in DECODERS},
    "ministral": (
        "ministral",
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3, "num_key_value_heads": 2},
    ),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2_inverse_layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 24}),
    "gpt2_unscaled_relu": ("gpt2", {"scale_attn_weights": False, "activation_function": "relu"}),
    "llama_grouped_tied": ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_rope_llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama_rope_linear": (
        "llama",
        {"rope_parameters": _LINEAR},
    ),
    "mistral_window": ("mistral", {"sliding_window": 4, "num_key_value_heads": 1}),
    "qwen2_late_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "num_key_value_heads": 2},
    ),
    "qwen3_moe_some_dense": (
        "qwen3_moe",
        {"mlp_only_layers": [0], "norm_topk_prob": True, "num_experts_per_tok": 3, "num_key_value_heads": 2},
    ),
    "gpt_neox_in_turn_tied": (
        "gpt_neox",
        {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "phi_norms_tied": ("phi", {"qk_layernorm": True, "tie_word_embeddings": True, "num_key_value_heads": 2}),
    "qwen3_wide_heads_yarn": (
        "qwen3",
        {"head_dim": 12, "num_key_value_heads": 2, "attention_bias": True, "rope_parameters": _YARN},
    ),
}

# Layers of these differ in their parameters, so that they cannot be scanned.
UNLIKE_LAYERS = {"qwen3_moe_some_dense"}


def hf_config(model_type: str, **options: Any) -> transformers.PreTrainedConfig:
    """A small configuration of a family."""
    sizes = _GPT2 if model_type == "gpt2" else _LLAMA
    options = {**_PLAIN.get(model_type, {}), **options}
    fixed = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD_TOKEN, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(model_type, **{**sizes, **fixed, **options})


def torch_model(name: str, *, is_classifier: bool = False) -> Any:
    """A variant in float32, with norms away from 1 and biases away from 0, so that a lost one shows.

    Gemma's norms multiply by 1 + weight.
    """
    model_type, options = VARIANTS[name]
    config = hf_config(model_type, **options)
    if is_classifier:
        config.num_labels = 1
    auto = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and parameter_name.endswith("weight")
            norm = 0.3 * noise if "gemma" in model_type else 1 + 0.3 * noise
            parameter.copy_(norm if is_norm else 0.2 * noise)
    return model


def random_model(model_type: str, *, head: Any = None, seed: int = 0, **options: Any) -> tuple[CausalLM, Any]:
    """Our own model with weights of its own initialisation, scaled up so that its answers differ."""
    config = hf_config(model_type, initializer_range=0.3, **options).to_dict()
    model = CausalLM(FAMILIES[model_type].config_from_hf(config), head=head)
    params = init_params(model, jax.random.key(seed))
    return model, params


@partial(jax.jit, static_argnums=0)
def forward(model: CausalLM, params: Any, ids: Any, mask: Any, cache: Any = None, segment_ids: Any = None) -> Any:
    """Our whole model, compiled."""
    return model.apply({"params": params}, ids, attention_mask=mask, cache=cache, segment_ids=segment_ids)


def padded_batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask `[4, WIDTH]`: no padding, on the right, on the left, and much on the left."""
    mask = np.ones((4, WIDTH), np.int32)
    mask[1, -4:] = 0
    mask[2, :3] = 0
    mask[3, :8] = 0
    ids = np.random.default_rng(seed).integers(0, PAD_TOKEN, mask.shape)
    return np.where(mask == 1, ids, PAD_TOKEN).astype(np.int32), mask


def positions(mask: np.ndarray) -> np.ndarray:
    """Position of each token in its row, padding at 0."""
    return np.clip(np.cumsum(mask, axis=-1) - 1, 0, None)


def torch_load(auto: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A folder by a transformers auto class, in float32, and which tensors it missed or had no use for."""
    model, info = auto.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    return model.float().eval(), info


def torch_logits(model: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits (of a classifier: scores) of Hugging Face's class."""
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(ids).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions(mask)).long(),
            use_cache=False,
        )
    return output.logits.numpy()


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of each file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
