"""Phi-1, Phi-1.5 and Phi-2: attention and feed-forward network read the same norm; the unembedding has a bias.

Reference: Gunasekar et al., 2023, Textbooks Are All You Need.
"""

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_lm.distributed.sharding import constrain
from jaxrl_lm.models import attention, rotary
from jaxrl_lm.models.attention import KVCache
from jaxrl_lm.models.config import ACTIVATIONS, ModelConfig
from jaxrl_lm.models.linear import Embedding, Linear
from jaxrl_lm.models.rotary import RotaryConfig
from jaxrl_lm.models.stack import RESIDUAL_AXES, Carry, LayerContexts, Remat, make_layers, run_layers


@dataclass(frozen=True, kw_only=True)
class PhiConfig(ModelConfig):
    """Phi's own settings.

    Attributes:
        rotary: rotary position embedding.
        has_qk_norm: LayerNorm on each query and key head before rotation.
    """

    rotary: RotaryConfig
    has_qk_norm: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rotary.check_head_size(self.head_size)

    @property
    def rotaries(self) -> tuple[RotaryConfig, ...]:
        """Rotary embeddings of the layers."""
        return (self.rotary,)


def config_from_hf(config: dict[str, Any]) -> PhiConfig:
    """Read a `model_type: phi` configuration.

    Raises:
        InputError: a value is not supported.
    """
    num_heads, model_size = config["num_attention_heads"], config["hidden_size"]
    num_kv_heads, head_size = config.get("num_key_value_heads"), config.get("head_dim")
    rotation = rotary.rotary_from_hf(config, is_partial=True)
    return PhiConfig(
        vocab_size=config["vocab_size"],
        model_size=model_size,
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
        head_size=model_size // num_heads if head_size is None else head_size,
        mlp_size=config["intermediate_size"],
        max_positions=rotation.longest(config["max_position_embeddings"]),
        activation=config.get("hidden_act", "gelu_new"),
        norm_epsilon=config.get("layer_norm_eps", 1e-5),
        is_tied=config.get("tie_word_embeddings", False),
        init_std=config.get("initializer_range", 0.02),
        has_unembedding_bias=True,
        rotary=rotation,
        has_qk_norm=config.get("qk_layernorm", False),
        hf_json=json.dumps(config, sort_keys=True),
    )


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions in part of each head."""

    config: PhiConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Any, cache: KVCache | None, layer: int | jax.Array
    ) -> tuple[jax.Array, KVCache | None]:
        cfg = self.config
        table, visible = context

        def project(name: str, num_heads: int, axis: str) -> jax.Array:
            flat = _linear(self, num_heads * cfg.head_size, (axis, "embed"), f"{name}_proj")(x)
            heads = flat.reshape(*x.shape[:2], num_heads, cfg.head_size)
            return _norm(self, f"{name}_layernorm")(heads) if cfg.has_qk_norm and name != "v" else heads

        queries = rotary.rotate(project("q", cfg.num_heads, "heads"), table)
        keys = rotary.rotate(project("k", cfg.num_kv_heads, "kv_heads"), table)
        values = project("v", cfg.num_kv_heads, "kv_heads")
        keys, values, cache = attention.update_layer(cache, layer, keys, values)
        mixed = attention.attend(queries, keys, values, visible, cfg.head_size**-0.5)
        return _linear(self, cfg.model_size, ("embed", "heads"), "dense")(mixed), cache


class MLP(nn.Module):
    """Two-layer feed-forward network."""

    config: PhiConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        hidden = ACTIVATIONS[cfg.activation](_linear(self, cfg.mlp_size, ("mlp", "embed"), "fc1")(x))
        return _linear(self, cfg.model_size, ("embed", "mlp"), "fc2")(hidden)


class Block(nn.Module):
    """Attention and feed-forward network side by side, after one LayerNorm and with one residual."""

    config: PhiConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, carry: Carry, contexts: LayerContexts, layer: int | jax.Array) -> tuple[Carry, None]:
        x, cache = carry
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        normed = _norm(self, "input_layernorm")(x)
        attn, cache = Attention(self.config, **kinds, name="self_attn")(normed, contexts.of(layer), cache, layer)
        x = x + attn + MLP(self.config, **kinds, name="mlp")(normed)
        return (constrain(x, *RESIDUAL_AXES), cache), None


class Phi(nn.Module):
    """The stack of blocks, from token ids to hidden states `[B, T, D]`."""

    config: PhiConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    is_scanned: bool = False

    def setup(self) -> None:
        cfg = self.config
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.model_size, cfg.init_std, **kinds)
        self.layers = make_layers(Block, cfg, remat=self.remat, is_scanned=self.is_scanned, **kinds)
        self.final_layernorm = nn.LayerNorm(epsilon=cfg.norm_epsilon, **kinds)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array, position_ids: jax.Array, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        cfg = self.config
        table = rotary.rotary_table(cfg.rotary, position_ids, cfg.head_size, cfg.max_positions)
        context = (table, attention.visible_keys(attention_mask, cache, cfg.attention))
        contexts = LayerContexts(contexts=(context,), kinds=(0,) * cfg.num_layers)
        x, cache = run_layers(self.layers, self.embed_tokens(input_ids), contexts, cache)
        return self.final_layernorm(x), attention.advance(cache, attention_mask)


def _linear(module: Attention | MLP, features: int, axes: tuple[str, str], name: str) -> Linear:
    return Linear(
        features,
        axes,
        use_bias=True,
        init_std=module.config.init_std,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        lora=module.config.lora,
        name=name,
    )


def _norm(module: Attention | Block, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=module.config.norm_epsilon, dtype=module.dtype, param_dtype=module.param_dtype, name=name
    )
