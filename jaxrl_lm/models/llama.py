"""The Llama family: rotary positions, RMSNorm, gated feed-forward, grouped key/value heads.

One stack implements Llama and SmolLM2, Mistral (sliding window), Ministral (in some layers only), Qwen2 (biases on
queries, keys and values), Qwen3 (norms on queries and keys) and Phi-3 (rotation of part of a head); the configuration
selects the parts. Gemma and Qwen3-MoE have blocks of their own.

Reference: Touvron et al., 2023, Llama 2: Open Foundation and Fine-Tuned Chat Models.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_lm import checks
from jaxrl_lm.distributed.sharding import constrain
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import attention, rotary
from jaxrl_lm.models.attention import KVCache, Visible
from jaxrl_lm.models.config import ACTIVATIONS, ModelConfig
from jaxrl_lm.models.linear import Embedding, Linear
from jaxrl_lm.models.rotary import RotaryConfig
from jaxrl_lm.models.stack import RESIDUAL_AXES, Carry, LayerContexts, Remat, make_layers, run_layers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What may differ from layer to layer.

    Attributes:
        rotary: rotary position embedding.
        window: how many positions (including itself) a query attends to; None for all.
    """

    rotary: RotaryConfig
    window: int | None


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """The Llama family's own settings.

    Attributes:
        kinds: of each layer.
        has_qkv_bias: biases on the query, key and value projections.
        has_output_bias: a bias on the attention's output projection.
        has_mlp_bias: biases in the feed-forward layer.
        has_qk_norm: RMSNorm on each query and key head before rotation.
        attention_scale: of the attention logits; None for 1/sqrt(H).
        attention_softcap: bound of the attention logits; None for none.
        embedding_scale: factor on the embeddings.
        norm_offset: added to the weights of norms.
    """

    kinds: tuple[LayerKind, ...]
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    attention_scale: float | None = None
    attention_softcap: float | None = None
    embedding_scale: float = 1.0
    norm_offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.above(self, 0, "attention_softcap", prefix="config.json: ")
        for rotation in self.rotaries:
            rotation.check_head_size(self.head_size)

    @property
    def rotaries(self) -> tuple[RotaryConfig, ...]:
        """Rotary embeddings of the layers."""
        return tuple(dict.fromkeys(kind.rotary for kind in self.kinds))


def config_from_hf(config: dict[str, Any]) -> LlamaConfig:
    """Read a configuration with `model_type` llama, mistral, ministral, qwen2, qwen3, qwen3_moe or phi3.

    Raises:
        InputError: a value is not supported.
    """
    kind = config["model_type"]
    num_heads, num_kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    head_size = config.get("head_dim")
    attention_bias = bool(config.get("attention_bias", False)) and kind in ("llama", "qwen3", "qwen3_moe")
    rotation = rotary.rotary_from_hf(config, is_partial=kind == "phi3")
    return LlamaConfig(
        vocab_size=config["vocab_size"],
        model_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
        head_size=config["hidden_size"] // num_heads if head_size is None else head_size,
        mlp_size=config["intermediate_size"],
        max_positions=rotation.longest(config["max_position_embeddings"]),
        activation=config.get("hidden_act", "silu"),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        is_tied=config.get("tie_word_embeddings", False),
        init_std=config.get("initializer_range", 0.02),
        kinds=tuple(LayerKind(rotary=rotation, window=window) for window in windows(config)),
        has_qkv_bias=attention_bias or kind == "qwen2",
        has_output_bias=attention_bias,
        has_mlp_bias=bool(config.get("mlp_bias", False)) and kind == "llama",
        has_qk_norm=kind in ("qwen3", "qwen3_moe"),
        hf_json=json.dumps(config, sort_keys=True),
    )


def windows(config: dict[str, Any]) -> tuple[int | None, ...]:
    """Attention window of each layer, as in transformers.

    Llama has none. Mistral, Qwen3-MoE and Phi-3 have one for all layers. Others read `layer_types`, which transformers
    fills in; for Qwen it follows from `use_sliding_window` and `max_window_layers`.

    Raises:
        InputError: a type of layer or the window is not supported.
    """
    num_layers, window, kind = config["num_hidden_layers"], config.get("sliding_window"), config["model_type"]
    layer_types = config.get("layer_types") or ["full_attention"] * num_layers
    if kind == "llama":
        if window is not None or "sliding_attention" in layer_types:
            _log.warning(
                "config.json: sliding_window and layer_types are ignored: all Llama layers attend to all positions, "
                "as in transformers"
            )
        return (None,) * num_layers
    if kind in ("mistral", "qwen3_moe", "phi3"):
        layer_types = ["full_attention" if window is None else "sliding_attention"] * num_layers
    unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise InputError(
            f"config.json: layer_types: {', '.join(unknown)} is not supported; supported: full_attention, "
            "sliding_attention"
        )
    if "sliding_attention" in layer_types and (window is None or window < 1):
        raise InputError(
            f"config.json: sliding_window={window} must be at least 1 if layer_types contains sliding_attention; "
            "correct it (Qwen: use_sliding_window must be true)"
        )
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in layer_types)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * (offset + scale), in float32."""

    epsilon: float
    dtype: Any
    param_dtype: Any
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", start, (x.shape[-1],), self.param_dtype).astype(jnp.float32) + self.offset
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (normed * scale).astype(self.dtype)


Context = tuple[tuple[jax.Array, jax.Array], Visible]
"""Cosines and sines of the positions, and the visible keys."""


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    config: LlamaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, cache: KVCache | None, layer: int | jax.Array
    ) -> tuple[jax.Array, KVCache | None]:
        cfg = self.config
        table, visible = context

        def project(name: str, num_heads: int, axis: str) -> jax.Array:
            flat = _linear(self, num_heads * cfg.head_size, (axis, "embed"), cfg.has_qkv_bias, f"{name}_proj")(x)
            heads = flat.reshape(*x.shape[:2], num_heads, cfg.head_size)
            if cfg.has_qk_norm and name != "v":
                heads = norm(self, f"{name}_norm")(heads)
            return heads

        queries = rotary.rotate(project("q", cfg.num_heads, "heads"), table)
        keys = rotary.rotate(project("k", cfg.num_kv_heads, "kv_heads"), table)
        values = project("v", cfg.num_kv_heads, "kv_heads")
        keys, values, cache = attention.update_layer(cache, layer, keys, values)
        scale = cfg.head_size**-0.5 if cfg.attention_scale is None else cfg.attention_scale
        mixed = attention.attend(queries, keys, values, visible, scale, cfg.attention_softcap)
        return _linear(self, cfg.model_size, ("embed", "heads"), cfg.has_output_bias, "o_proj")(mixed), cache


class MLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    config: LlamaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        gate = _linear(self, cfg.mlp_size, ("mlp", "embed"), cfg.has_mlp_bias, "gate_proj")(x)
        up = _linear(self, cfg.mlp_size, ("mlp", "embed"), cfg.has_mlp_bias, "up_proj")(x)
        hidden = ACTIVATIONS[cfg.activation](gate) * up
        return _linear(self, cfg.model_size, ("embed", "mlp"), cfg.has_mlp_bias, "down_proj")(hidden)


class Block(nn.Module):
    """Attention and feed-forward network, each after an RMSNorm and with a residual."""

    config: LlamaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, carry: Carry, contexts: LayerContexts, layer: int | jax.Array) -> tuple[Carry, None]:
        x, cache = carry
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attn, cache = Attention(self.config, **kinds, name="self_attn")(
            norm(self, "input_layernorm")(x), contexts.of(layer), cache, layer
        )
        x = x + attn
        x = x + MLP(self.config, **kinds, name="mlp")(norm(self, "post_attention_layernorm")(x))
        return (constrain(x, *RESIDUAL_AXES), cache), None


class Llama(nn.Module):
    """The stack of blocks, from token ids to hidden states `[B, T, D]`."""

    block: ClassVar[Any] = Block
    config: LlamaConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    is_scanned: bool = False

    def setup(self) -> None:
        cfg = self.config
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.model_size, cfg.init_std, **kinds)
        self.layers = make_layers(self.block, cfg, remat=self.remat, is_scanned=self.is_scanned, **kinds)
        self.norm = norm(self)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array, position_ids: jax.Array, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        cfg = self.config
        x = self.embed_tokens(input_ids)
        if cfg.embedding_scale != 1.0:
            x *= jnp.asarray(cfg.embedding_scale, x.dtype)  # rounded as in Hugging Face's classes
        tables = {
            rotation: rotary.rotary_table(rotation, position_ids, cfg.head_size, cfg.max_positions)
            for rotation in cfg.rotaries
        }
        kinds = tuple(dict.fromkeys(cfg.kinds))
        windows = tuple(kind.window for kind in kinds)
        contexts = LayerContexts(
            contexts=tuple(
                (tables[kind.rotary], attention.visible_keys(attention_mask, cache, cfg.attention, windows, number))
                for number, kind in enumerate(kinds)
            ),
            kinds=tuple(map(kinds.index, cfg.kinds)),
        )
        x, cache = run_layers(self.layers, x, contexts, cache)
        return self.norm(x), attention.advance(cache, attention_mask)


def _linear(module: Attention | MLP, features: int, axes: tuple[str, str], use_bias: bool, name: str) -> Linear:
    return Linear(
        features,
        axes,
        use_bias=use_bias,
        init_std=module.config.init_std,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        lora=module.config.lora,
        name=name,
    )


def norm(module: Any, name: str | None = None) -> RMSNorm:
    """A norm inside a module that has a configuration and dtypes."""
    cfg = module.config
    return RMSNorm(cfg.norm_epsilon, module.dtype, module.param_dtype, offset=cfg.norm_offset, name=name)
