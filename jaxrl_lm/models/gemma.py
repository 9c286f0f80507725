"""Gemma 2 and the text model of Gemma 3: Llama's parts with norms on both sides of each layer, and two kinds of layers.

Some layers attend to a window, others to all positions. Gemma 2 bounds the logits of the attention and the model, Gemma
3 has norms on queries and keys, and rotates by other frequencies in windows than elsewhere. Embeddings are multiplied
by sqrt(D), and norms by 1 + weight.

Reference: Gemma Team, 2024, Gemma 2: Improving Open Language Models at a Practical Size; Gemma Team, 2025, Gemma 3
Technical Report.
"""

import json
from typing import Any, ClassVar

import jax
from flax import linen as nn

from jaxrl_lm.distributed.sharding import constrain
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import llama
from jaxrl_lm.models.llama import LayerKind, LlamaConfig, norm
from jaxrl_lm.models.rotary import RotaryConfig, rotary_from_hf
from jaxrl_lm.models.stack import RESIDUAL_AXES, Carry, LayerContexts


def config_from_hf(config: dict[str, Any]) -> LlamaConfig:
    """Read a configuration with `model_type` gemma2 or gemma3_text.

    Raises:
        InputError: a value is not supported.
    """
    if config.get("use_bidirectional_attention"):
        raise InputError(
            "config.json: use_bidirectional_attention=true is not supported; use a decoder, which is causal"
        )
    scalar, is_second = config["query_pre_attn_scalar"], config["model_type"] == "gemma2"
    if not scalar > 0:
        raise InputError(f"config.json: query_pre_attn_scalar={scalar} must be above 0; correct it")
    rotaries, has_bias = _rotaries(config), bool(config.get("attention_bias", False))
    positions = config["max_position_embeddings"]
    return LlamaConfig(
        vocab_size=config["vocab_size"],
        model_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_size=config["head_dim"],
        mlp_size=config["intermediate_size"],
        max_positions=max(rotation.longest(positions) for rotation in rotaries),
        activation=config.get("hidden_activation", "gelu_pytorch_tanh"),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        is_tied=config.get("tie_word_embeddings", True),
        init_std=config.get("initializer_range", 0.02),
        logit_softcap=config.get("final_logit_softcapping"),
        kinds=tuple(
            LayerKind(rotary=rotation, window=window)
            for rotation, window in zip(rotaries, llama.windows(config), strict=True)
        ),
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=False,
        has_qk_norm=not is_second,
        attention_scale=scalar**-0.5,
        attention_softcap=config.get("attn_logit_softcapping") if is_second else None,  # Gemma 3's class ignores it
        embedding_scale=config["hidden_size"] ** 0.5,
        norm_offset=1.0,
        hf_json=json.dumps(config, sort_keys=True),
    )


def _rotaries(config: dict[str, Any]) -> tuple[RotaryConfig, ...]:
    """Rotary embedding of each layer; Gemma 3 has one for each of its types."""
    layer_types = config["layer_types"]
    if config["model_type"] == "gemma2":
        return (rotary_from_hf(config),) * len(layer_types)
    ropes = config["rope_parameters"]
    read = {kind: rotary_from_hf(config | {"rope_parameters": ropes.get(kind)}) for kind in set(layer_types)}
    return tuple(read[kind] for kind in layer_types)


class Block(nn.Module):
    """Attention and feed-forward network, each between two RMSNorms and with a residual."""

    config: LlamaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, carry: Carry, contexts: LayerContexts, layer: int | jax.Array) -> tuple[Carry, None]:
        x, cache = carry
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attn, cache = llama.Attention(self.config, **kinds, name="self_attn")(
            norm(self, "input_layernorm")(x), contexts.of(layer), cache, layer
        )
        x = x + norm(self, "post_attention_layernorm")(attn)
        mlp = llama.MLP(self.config, **kinds, name="mlp")(norm(self, "pre_feedforward_layernorm")(x))
        x = x + norm(self, "post_feedforward_layernorm")(mlp)
        return (constrain(x, *RESIDUAL_AXES), cache), None


class Gemma(llama.Llama):
    """The stack of blocks, from token ids to hidden states `[B, T, D]`."""

    block: ClassVar[Any] = Block
