"""BERT: a bidirectional encoder with LayerNorm after each block and learned absolute positions.

Reference: Devlin et al., 2018, BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding.
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
from jaxrl_lm.models.attention import Visible
from jaxrl_lm.models.config import ACTIVATIONS, ModelConfig
from jaxrl_lm.models.linear import Embedding, Linear
from jaxrl_lm.models.stack import RESIDUAL_AXES, Remat, rematerialized


@dataclass(frozen=True, kw_only=True)
class BertConfig(ModelConfig):
    """BERT's own settings.

    Attributes:
        num_token_types: number of segment ids (prompt and completion).
    """

    num_token_types: int


def config_from_hf(config: dict[str, Any]) -> BertConfig:
    """Read a `model_type: bert` configuration.

    Raises:
        InputError: a value is not supported.
    """
    size, num_heads = config["hidden_size"], config["num_attention_heads"]
    if size % num_heads:
        raise InputError(f"config.json: hidden_size={size} must be a multiple of num_attention_heads={num_heads}")
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise InputError(
            f"config.json: position_embedding_type={positions!r} is not supported; use a BERT with 'absolute'"
        )
    for name in ("is_decoder", "add_cross_attention"):
        if config.get(name):
            raise InputError(
                f"config.json: {name}=true is not supported: BERT is loaded as an encoder only; use one with false"
            )
    return BertConfig(
        vocab_size=config["vocab_size"],
        model_size=size,
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=size // num_heads,
        mlp_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        activation=config.get("hidden_act", "gelu"),
        norm_epsilon=config.get("layer_norm_eps", 1e-12),
        is_tied=True,
        init_std=config.get("initializer_range", 0.02),
        num_token_types=config.get("type_vocab_size", 2),
        hf_json=json.dumps(config, sort_keys=True),
    )


class _Part(nn.Module):
    """Sizes and dtypes shared by all parts."""

    config: BertConfig
    dtype: Any
    param_dtype: Any

    def linear(self, features: int, axes: tuple[str, str], name: str, *, is_head: bool = False) -> Linear:
        cfg, kinds = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        lora = None if is_head else cfg.lora
        return Linear(features, axes, use_bias=True, init_std=cfg.init_std, lora=lora, name=name, **kinds)

    def norm(self) -> nn.LayerNorm:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return nn.LayerNorm(epsilon=self.config.norm_epsilon, name="LayerNorm", **kinds)

    def embed(self, num_rows: int, name: str, rows: str = "positions") -> Embedding:
        cfg, kinds = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Embedding(num_rows, cfg.model_size, cfg.init_std, rows=rows, name=name, **kinds)

    def part(self, kind: Any, name: str, **options: Any) -> Any:
        return kind(self.config, self.dtype, self.param_dtype, name=name, **options)


class Embeddings(_Part):
    """Sum of the embeddings of token, position and segment, then LayerNorm."""

    @nn.compact
    def __call__(self, ids: jax.Array, positions: jax.Array, token_types: jax.Array) -> jax.Array:
        cfg = self.config
        x = self.embed(cfg.vocab_size, "word_embeddings", "vocab")(ids)
        x += self.embed(cfg.max_positions, "position_embeddings")(positions)
        x += self.embed(cfg.num_token_types, "token_type_embeddings")(token_types)
        return self.norm()(x)


class SelfAttention(_Part):
    """Multi-head attention to every token except padding."""

    @nn.compact
    def __call__(self, x: jax.Array, visible: Visible) -> jax.Array:
        cfg = self.config
        heads = (*x.shape[:2], cfg.num_heads, cfg.head_size)
        axes = ("heads", "embed")
        queries, keys, values = (self.linear(cfg.model_size, axes, name)(x) for name in ("query", "key", "value"))
        keys, values = (jnp.swapaxes(each.reshape(heads), 1, 2) for each in (keys, values))
        return attention.attend(queries.reshape(heads), keys, values, visible, cfg.head_size**-0.5)


class Output(_Part):
    """A projection added to the residual stream, then LayerNorm.

    Attributes:
        inputs: logical axis of what is projected.
    """

    inputs: str = "mlp"

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        projected = self.linear(self.config.model_size, ("embed", self.inputs), "dense")(x)
        return constrain(self.norm()(projected + residual), *RESIDUAL_AXES)


class Attention(_Part):
    """Self-attention and its output."""

    @nn.compact
    def __call__(self, x: jax.Array, visible: Visible) -> jax.Array:
        mixed = self.part(SelfAttention, "self")(x, visible)
        return self.part(Output, "output", inputs="heads")(mixed, x)


class Intermediate(_Part):
    """The first layer of the feed-forward network."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.config.activation](self.linear(self.config.mlp_size, ("mlp", "embed"), "dense")(x))


class Block(_Part):
    """Attention, then the feed-forward network."""

    @nn.compact
    def __call__(self, x: jax.Array, visible: Visible) -> jax.Array:
        x = self.part(Attention, "attention")(x, visible)
        return self.part(Output, "output")(self.part(Intermediate, "intermediate")(x), x)


class Stack(_Part):
    """The blocks."""

    remat: Remat = "none"

    @nn.compact
    def __call__(self, x: jax.Array, visible: Visible) -> jax.Array:
        block = rematerialized(Block, self.remat)
        for layer in range(self.config.num_layers):
            x = self.part(block, f"layer_{layer}")(x, visible)
        return x


class Pooler(_Part):
    """tanh of a projection of the first position's hidden state."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.linear(self.config.model_size, ("pooled", "embed"), "dense", is_head=True)(x[:, 0]))


class Bert(nn.Module):
    """From token ids to hidden states `[B, T, D]` and the pooled one `[B, D]`."""

    config: BertConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array, position_ids: jax.Array, token_type_ids: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        parts = (self.config, self.dtype, self.param_dtype)
        x = Embeddings(*parts, name="embeddings")(input_ids, position_ids, token_type_ids)
        shape = (*attention_mask.shape, attention_mask.shape[1])
        mask = jnp.broadcast_to((attention_mask > 0)[:, None, :], shape)
        segments = attention_mask if self.config.attention == "auto" else None
        visible = Visible(mask=mask, segments=segments, is_causal=False)
        x = Stack(*parts, self.remat, name="encoder")(x, visible)
        return x, Pooler(*parts, name="pooler")(x)
