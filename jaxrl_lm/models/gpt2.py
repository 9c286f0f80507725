"""GPT-2: learned positions, LayerNorm before each block, one projection for queries, keys and values.

Reference: Radford et al., 2019, Language Models are Unsupervised Multitask Learners.
"""

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_lm.distributed.sharding import constrain
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import attention
from jaxrl_lm.models.attention import KVCache, Visible
from jaxrl_lm.models.config import ACTIVATIONS, ModelConfig
from jaxrl_lm.models.linear import Embedding, Linear
from jaxrl_lm.models.stack import RESIDUAL_AXES, Carry, LayerContexts, Remat, make_layers, run_layers


@dataclass(frozen=True, kw_only=True)
class GPT2Config(ModelConfig):
    """GPT-2's own settings.

    Attributes:
        is_scaled: whether attention logits are divided by sqrt(H).
        is_scaled_by_layer: whether they are also divided by the layer's number (Mistral's GPT-2 runs).
    """

    is_scaled: bool
    is_scaled_by_layer: bool

    def attention_scale(self, layer: int | jax.Array) -> float | jax.Array:
        """Scale of the attention logits in block `layer`."""
        scale = self.head_size**-0.5 if self.is_scaled else 1.0
        return scale / (layer + 1) if self.is_scaled_by_layer else scale


def config_from_hf(config: dict[str, Any]) -> GPT2Config:
    """Read a `model_type: gpt2` configuration.

    Raises:
        InputError: a value is not supported.
    """
    if config["n_embd"] % config["n_head"]:
        raise InputError(f"config.json: n_embd={config['n_embd']} must be a multiple of n_head={config['n_head']}")
    if config.get("add_cross_attention"):
        raise InputError("config.json: add_cross_attention=true is not supported; use a decoder-only GPT-2")
    inner_size = config.get("n_inner")
    return GPT2Config(
        vocab_size=config["vocab_size"],
        model_size=config["n_embd"],
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        num_kv_heads=config["n_head"],
        head_size=config["n_embd"] // config["n_head"],
        mlp_size=4 * config["n_embd"] if inner_size is None else inner_size,
        max_positions=config["n_positions"],
        activation=config.get("activation_function", "gelu_new"),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        is_tied=config.get("tie_word_embeddings", True),
        init_std=config.get("initializer_range", 0.02),
        is_scaled=config.get("scale_attn_weights", True),
        is_scaled_by_layer=config.get("scale_attn_by_inverse_layer_idx", False),
        hf_json=json.dumps(config, sort_keys=True),
    )


class Attention(nn.Module):
    """Multi-head self-attention."""

    config: GPT2Config
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, visible: Visible, cache: KVCache | None, layer: int | jax.Array
    ) -> tuple[jax.Array, KVCache | None]:
        cfg = self.config
        qkv = _linear(self, 3 * cfg.model_size, ("qkv", "embed"), "c_attn")(x)
        heads = (*x.shape[:2], cfg.num_heads, cfg.head_size)
        queries, keys, values = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        keys, values, cache = attention.update_layer(cache, layer, keys, values)
        mixed = attention.attend(queries, keys, values, visible, cfg.attention_scale(layer))
        return _linear(self, cfg.model_size, ("embed", "heads"), "c_proj")(mixed), cache


class MLP(nn.Module):
    """Two-layer feed-forward network."""

    config: GPT2Config
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        hidden = ACTIVATIONS[cfg.activation](_linear(self, cfg.mlp_size, ("mlp", "embed"), "c_fc")(x))
        return _linear(self, cfg.model_size, ("embed", "mlp"), "c_proj")(hidden)


class Block(nn.Module):
    """Attention and feed-forward network, each after a LayerNorm and with a residual."""

    config: GPT2Config
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, carry: Carry, contexts: LayerContexts, layer: int | jax.Array) -> tuple[Carry, None]:
        x, cache = carry
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attn, cache = Attention(self.config, **kinds, name="attn")(
            _norm(self, "ln_1")(x), contexts.of(layer), cache, layer
        )
        x = x + attn
        x = x + MLP(self.config, **kinds, name="mlp")(_norm(self, "ln_2")(x))
        return (constrain(x, *RESIDUAL_AXES), cache), None


class GPT2(nn.Module):
    """The stack of blocks, from token ids to hidden states `[B, T, D]`."""

    config: GPT2Config
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    is_scanned: bool = False

    def setup(self) -> None:
        cfg = self.config
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.wte = Embedding(cfg.vocab_size, cfg.model_size, cfg.init_std, **kinds)
        self.wpe = Embedding(cfg.max_positions, cfg.model_size, cfg.init_std, rows="positions", **kinds)
        self.h = make_layers(Block, cfg, remat=self.remat, is_scanned=self.is_scanned, **kinds)
        self.ln_f = nn.LayerNorm(epsilon=cfg.norm_epsilon, **kinds)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array, position_ids: jax.Array, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        x = self.wte(input_ids) + self.wpe(position_ids)
        visible = attention.visible_keys(attention_mask, cache, self.config.attention)
        contexts = LayerContexts(contexts=(visible,), kinds=(0,) * self.config.num_layers)
        x, cache = run_layers(self.h, x, contexts, cache)
        return self.ln_f(x), attention.advance(cache, attention_mask)


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


def _norm(module: Block, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=module.config.norm_epsilon, dtype=module.dtype, param_dtype=module.param_dtype, name=name
    )
