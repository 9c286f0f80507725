"""GPT-NeoX (Pythia): attention and feed-forward network side by side, rotary positions in part of each head.

Reference: Black et al., 2022, GPT-NeoX-20B: An Open-Source Autoregressive Language Model; Biderman et al., 2023,
Pythia: A Suite for Analyzing Large Language Models Across Training and Scaling.
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
class GPTNeoXConfig(ModelConfig):
    """GPT-NeoX's own settings.

    Attributes:
        rotary: rotary position embedding.
        has_attention_bias: biases in the attention's projections.
        is_parallel: whether the feed-forward network reads the block's input instead of the attention's output.
    """

    rotary: RotaryConfig
    has_attention_bias: bool
    is_parallel: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rotary.check_head_size(self.head_size)

    @property
    def rotaries(self) -> tuple[RotaryConfig, ...]:
        """Rotary embeddings of the layers."""
        return (self.rotary,)


def config_from_hf(config: dict[str, Any]) -> GPTNeoXConfig:
    """Read a `model_type: gpt_neox` configuration.

    Raises:
        InputError: a value is not supported.
    """
    num_heads, model_size = config["num_attention_heads"], config["hidden_size"]
    rotation = rotary.rotary_from_hf(config, is_partial=True)
    return GPTNeoXConfig(
        vocab_size=config["vocab_size"],
        model_size=model_size,
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=model_size // num_heads,
        mlp_size=config["intermediate_size"],
        max_positions=rotation.longest(config["max_position_embeddings"]),
        activation=config.get("hidden_act", "gelu"),
        norm_epsilon=config.get("layer_norm_eps", 1e-5),
        is_tied=config.get("tie_word_embeddings", False),
        init_std=config.get("initializer_range", 0.02),
        rotary=rotation,
        has_attention_bias=config.get("attention_bias", True),
        is_parallel=config.get("use_parallel_residual", True),
        hf_json=json.dumps(config, sort_keys=True),
    )


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    config: GPTNeoXConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Any, cache: KVCache | None, layer: int | jax.Array
    ) -> tuple[jax.Array, KVCache | None]:
        cfg = self.config
        table, visible = context
        # Rows of the weight are ordered by head, then queries, keys and values, so it can be split by heads.
        qkv = _linear(self, 3 * cfg.model_size, ("heads", "embed"), "query_key_value", cfg.has_attention_bias)(x)
        queries, keys, values = jnp.split(qkv.reshape(*x.shape[:2], cfg.num_heads, 3 * cfg.head_size), 3, axis=-1)
        keys, values, cache = attention.update_layer(cache, layer, rotary.rotate(keys, table), values)
        mixed = attention.attend(rotary.rotate(queries, table), keys, values, visible, cfg.head_size**-0.5)
        return _linear(self, cfg.model_size, ("embed", "heads"), "dense", cfg.has_attention_bias)(mixed), cache


class MLP(nn.Module):
    """Two-layer feed-forward network."""

    config: GPTNeoXConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        hidden = ACTIVATIONS[cfg.activation](_linear(self, cfg.mlp_size, ("mlp", "embed"), "dense_h_to_4h")(x))
        return _linear(self, cfg.model_size, ("embed", "mlp"), "dense_4h_to_h")(hidden)


class Block(nn.Module):
    """Attention and feed-forward network, each after a LayerNorm and with a residual, side by side or in turn."""

    config: GPTNeoXConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, carry: Carry, contexts: LayerContexts, layer: int | jax.Array) -> tuple[Carry, None]:
        x, cache = carry
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attn, cache = Attention(self.config, **kinds, name="attention")(
            _norm(self, "input_layernorm")(x), contexts.of(layer), cache, layer
        )
        mixed = x + attn
        mlp_input = x if self.config.is_parallel else mixed
        mlp = MLP(self.config, **kinds, name="mlp")(_norm(self, "post_attention_layernorm")(mlp_input))
        return (constrain(mixed + mlp, *RESIDUAL_AXES), cache), None


class GPTNeoX(nn.Module):
    """The stack of blocks, from token ids to hidden states `[B, T, D]`."""

    config: GPTNeoXConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    is_scanned: bool = False

    def setup(self) -> None:
        cfg = self.config
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embed_in = Embedding(cfg.vocab_size, cfg.model_size, cfg.init_std, **kinds)
        self.layers = make_layers(Block, cfg, remat=self.remat, is_scanned=self.is_scanned, **kinds)
        self.final_layer_norm = nn.LayerNorm(epsilon=cfg.norm_epsilon, **kinds)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array, position_ids: jax.Array, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        cfg = self.config
        table = rotary.rotary_table(cfg.rotary, position_ids, cfg.head_size, cfg.max_positions)
        context = (table, attention.visible_keys(attention_mask, cache, cfg.attention))
        contexts = LayerContexts(contexts=(context,), kinds=(0,) * cfg.num_layers)
        x, cache = run_layers(self.layers, self.embed_in(input_ids), contexts, cache)
        return self.final_layer_norm(x), attention.advance(cache, attention_mask)


def _linear(module: Attention | MLP, features: int, axes: tuple[str, str], name: str, use_bias: bool = True) -> Linear:
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


def _norm(module: Block, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=module.config.norm_epsilon, dtype=module.dtype, param_dtype=module.param_dtype, name=name
    )
