"""The configuration of a decoder, independent of Hugging Face's names."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.attention import Kernels, KVCache, init_cache
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.models.rotary import RotaryConfig

Head = Literal["value", "reward"]

# Names as in transformers' `ACT2FN`.
ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), lambda x: jax.nn.gelu(x, approximate=False)),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), jax.nn.gelu),
    **dict.fromkeys(("silu", "swish"), jax.nn.silu),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "hardswish": jax.nn.hard_swish,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


# Largest accepted values in a config.json, by part of the field's name.
_MOST = {"layer": 1000, "labels": 1000, "position": 2**24, "n_ctx": 2**24, "token_id": 2**31}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes common to all decoder families; the families add their own.

    Attributes:
        vocab_size: V, rows of the embedding.
        model_size: D, width of the residual stream.
        num_layers: number of blocks.
        num_heads: N, query heads.
        num_kv_heads: K, key/value heads; divides N.
        head_size: H.
        mlp_size: width of the feed-forward layer.
        max_positions: longest sequence, in tokens.
        activation: name in `ACTIVATIONS`.
        norm_epsilon: added to the variance in the norms.
        is_tied: whether the unembedding is the embedding.
        init_std: standard deviation of newly initialised weights.
        hf_json: the Hugging Face configuration as JSON, used by `save_pretrained` to write config.json.
        has_unembedding_bias: whether a bias is added to the logits.
        logit_softcap: bound of the logits, as of `Unembedding`; None for none.
        lora: adapters of the projections (`lora.add_adapters`); None for none.
        attention: what computes attention without a cache.
    """

    vocab_size: int
    model_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    mlp_size: int
    max_positions: int
    activation: str
    norm_epsilon: float
    is_tied: bool
    init_std: float
    hf_json: str
    has_unembedding_bias: bool = False
    logit_softcap: float | None = None
    lora: LoraConfig | None = None
    attention: Kernels = "auto"

    def __post_init__(self) -> None:
        _check_kinds(self)
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"config.json: activation {self.activation!r} is not supported; choose {', '.join(sorted(ACTIVATIONS))}"
            )
        sizes = ("vocab_size", "model_size", "num_layers", "num_heads", "num_kv_heads", "head_size", "mlp_size")
        checks.at_least(self, 1, *sizes, "max_positions", prefix="config.json: ")
        checks.above(self, 0, "logit_softcap", prefix="config.json: ")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"config.json: num_attention_heads={self.num_heads} must be a multiple of "
                f"num_key_value_heads={self.num_kv_heads}; correct one of them"
            )

    @property
    def rotaries(self) -> tuple[RotaryConfig, ...]:
        """Rotary embeddings of the layers; none if positions are learned."""
        return ()

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have parameters of the same names and shapes, so that they can be scanned."""
        return True

    @property
    def split_sizes(self) -> dict[str, tuple[int, str]]:
        """What a mesh must divide: by its name in config.json, a size and its logical axis."""
        return {
            "hidden_size": (self.model_size, "embed"),
            "num_attention_heads": (self.num_heads, "heads"),
            "num_key_value_heads": (self.num_kv_heads, "kv_heads"),
            "intermediate_size": (self.mlp_size, "mlp"),
            "vocab_size": (self.vocab_size, "vocab"),
        }

    def hf_config(self) -> dict[str, Any]:
        """The Hugging Face configuration as a dictionary."""
        return json.loads(self.hf_json)

    def init_cache(self, batch: int, size: int, dtype: Any = jnp.float32, *, is_scanned: bool = False) -> KVCache:
        """An empty key/value cache for `batch` rows of at most `size` tokens, of an unrolled or a scanned stack."""
        return init_cache(
            num_layers=self.num_layers,
            batch=batch,
            size=size,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            dtype=dtype,
            is_scanned=is_scanned,
        )


def check_sizes(config: dict[str, Any], path: Path) -> None:
    """Refuse implausible sizes before anything is allocated.

    transformers builds a table of all labels and a list of all layers; we build a table of all positions.

    Args:
        config: content of config.json.
        path: path of config.json, for errors.

    Raises:
        InputError: a number is too large, or there are no attention heads.
    """
    for name, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        limit = next((most for part, most in _MOST.items() if part in name), 2**63)
        if abs(value) > limit:
            shown = value if value < 10**30 else f"a number of {len(str(value))} digits"
            raise InputError(f"{path}: {name[:60]}={shown} exceeds the limit of {limit:,}; correct it")
        if value == 0 and name in ("n_head", "num_attention_heads", "num_key_value_heads"):  # used as divisors
            raise InputError(f"{path}: {name} must not be 0; correct it")


def _check_kinds(config: ModelConfig) -> None:
    """Refuse wrong types that JSON allows: true or 1.5 for an integer, text for a number."""
    for field in fields(config):
        value = getattr(config, field.name)
        is_whole = type(value) is int
        if field.type is int and not is_whole:
            raise InputError(f"config.json: {field.name}={value!r:.60} must be an integer; correct it")
        if field.type is float and not (is_whole or (type(value) is float and math.isfinite(value))):
            raise InputError(f"config.json: {field.name}={value!r:.60} must be a finite number; correct it")
        if field.type is bool and type(value) is not bool:
            raise InputError(f"config.json: {field.name}={value!r:.60} must be true or false; correct it")
