"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the feed-forward network, in all or some layers.

Each token is sent to its k experts of highest probability, and no token is dropped. There is no loss that balances the
experts: training on rewards or examples has none in TRL either, unless `output_router_logits` asks for it.

Reference: Qwen Team, 2025, Qwen3 Technical Report; Shazeer et al., 2017, Outrageously Large Neural Networks: The
Sparsely-Gated Mixture-of-Experts Layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxrl_lm import checks
from jaxrl_lm.distributed.sharding import by_batch_part, constrain, gather
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import llama
from jaxrl_lm.models.config import ACTIVATIONS
from jaxrl_lm.models.linear import Linear
from jaxrl_lm.models.llama import LlamaConfig, norm
from jaxrl_lm.models.stack import RESIDUAL_AXES, Carry, LayerContexts

# x [M, D] times weights [E, F, D]: as `jax.lax.ragged_dot`, without transposing the weights.
_ROWS_BY_EXPERT = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


@dataclass(frozen=True, kw_only=True)
class Qwen3MoEConfig(LlamaConfig):
    """Qwen3-MoE's own settings.

    Attributes:
        num_experts: E, in each layer that has experts.
        num_chosen: k, experts of a token.
        expert_size: width of an expert's feed-forward layer.
        is_normalized: whether the weights of a token's experts are divided by their sum.
        dense_layers: layers with one feed-forward network instead of experts.
    """

    num_experts: int
    num_chosen: int
    expert_size: int
    is_normalized: bool
    dense_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dense_layers) == self.num_layers:
            return
        checks.at_least(self, 1, "num_experts", "num_chosen", "expert_size", prefix="config.json: ")
        if self.num_chosen > self.num_experts:
            raise InputError(
                f"config.json: num_experts_per_tok={self.num_chosen} must be at most num_experts={self.num_experts}"
            )

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have experts, or none."""
        return len(self.dense_layers) in (0, self.num_layers)

    @property
    def split_sizes(self) -> dict[str, tuple[int, str]]:
        """As of every model, and the experts' width."""
        return super().split_sizes | {"moe_intermediate_size": (self.expert_size, "mlp")}


def config_from_hf(config: dict[str, Any]) -> Qwen3MoEConfig:
    """Read a `model_type: qwen3_moe` configuration.

    Raises:
        InputError: a value is not supported.
    """
    if config.get("output_router_logits"):
        raise InputError(
            "config.json: output_router_logits=true is not supported: there is no loss that balances the experts; "
            "set it to false"
        )
    step, num_experts = config["decoder_sparse_step"], config["num_local_experts"]
    if num_experts > 0 and step < 1:
        raise InputError(f"config.json: decoder_sparse_step={step} must be at least 1; correct it")
    dense = (
        layer
        for layer in range(config["num_hidden_layers"])
        if layer in config["mlp_only_layers"] or num_experts <= 0 or (layer + 1) % step
    )
    return Qwen3MoEConfig(
        **vars(llama.config_from_hf(config)),
        num_experts=num_experts,
        num_chosen=config["num_experts_per_tok"],
        expert_size=config["moe_intermediate_size"],
        is_normalized=config["norm_topk_prob"],
        dense_layers=tuple(dense),
    )


class ExpertWeights(nn.Module):
    """A projection of all experts, `[E, F, D]`.

    How many tokens choose an expert is not known when the program is compiled. A device that had some of the experts
    would need room for as many rows as all of them have. So the axis of experts is not split: each expert's mlp axis is
    split over the tensor axis of the mesh, as that of a feed-forward network is.
    """

    config: Qwen3MoEConfig
    axes: tuple[str, str]
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self) -> jax.Array:
        cfg, axes = self.config, ("experts", *self.axes)
        sizes = {"mlp": cfg.expert_size, "embed": cfg.model_size}
        init: Any = nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std), axes)
        shape = (cfg.num_experts, *(sizes[axis] for axis in self.axes))
        return gather(self.param("weight", init, shape, self.param_dtype).astype(self.dtype), *axes)


class Experts(nn.Module):
    """The weights of all experts' feed-forward networks, gate, up and down."""

    config: Qwen3MoEConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self) -> tuple[jax.Array, ...]:
        axes = {"gate_proj": ("mlp", "embed"), "up_proj": ("mlp", "embed"), "down_proj": ("embed", "mlp")}
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return tuple(ExpertWeights(self.config, pair, **kinds, name=name)() for name, pair in axes.items())


class MixtureOfExperts(nn.Module):
    """sum over a token's k experts e of p_e down_e(act(gate_e(x)) * up_e(x)).

    p is the softmax over all experts, in float32.
    """

    config: Qwen3MoEConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        router = Linear(
            cfg.num_experts,
            ("experts", "embed"),
            use_bias=False,
            init_std=cfg.init_std,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            name="gate",
        )
        weights, chosen = jax.lax.top_k(jax.nn.softmax(router(x), axis=-1), cfg.num_chosen)
        if cfg.is_normalized:
            weights /= jnp.sum(weights, axis=-1, keepdims=True)
        experts = Experts(cfg, self.dtype, self.param_dtype, name="experts")()
        mix = partial(mix_experts, ACTIVATIONS[cfg.activation])
        return by_batch_part(mix, 3, x.astype(self.dtype), weights, chosen, *experts)


def mix_experts(
    activation: Callable[[jax.Array], jax.Array],
    x: Float[Array, "B T D"],
    weights: Float[Array, "B T k"],
    chosen: Int[Array, "B T k"],
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    down: Float[Array, "E D F"],
) -> Float[Array, "B T D"]:
    """sum_k weights_k down_e(activation(gate_e(x)) * up_e(x)) with e = chosen_k; no token is dropped.

    Tokens are sorted by expert, so that each product is one ragged product. On accelerators that is one instruction of
    XLA; on a CPU, JAX multiplies every row by every expert and masks, which suits tests, not large models.

    Args:
        activation: of the gates.
        x: tokens.
        weights: of each token's experts.
        chosen: the experts.
        gate: weights of each expert.
        up: weights of each expert.
        down: weights of each expert.
    """
    num_experts, num_chosen = len(gate), chosen.shape[-1]
    tokens, experts = x.reshape(-1, x.shape[-1]), chosen.reshape(-1)
    order = jnp.argsort(experts)
    sizes = jnp.bincount(experts, length=num_experts)

    def multiply(rows: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot_general(rows, weight, sizes, _ROWS_BY_EXPERT)

    rows = tokens[order // num_chosen]
    outputs = multiply(activation(multiply(rows, gate)) * multiply(rows, up), down)
    by_token = outputs[jnp.argsort(order)].reshape(*chosen.shape, -1)
    mixed = jnp.einsum("BTkD,BTk->BTD", by_token, weights, preferred_element_type=jnp.float32)
    return mixed.astype(x.dtype)


class Block(nn.Module):
    """Attention and experts, each after an RMSNorm and with a residual."""

    config: Qwen3MoEConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, carry: Carry, contexts: LayerContexts, layer: int | jax.Array) -> tuple[Carry, None]:
        x, cache = carry
        cfg, kinds = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attn, cache = llama.Attention(cfg, **kinds, name="self_attn")(
            norm(self, "input_layernorm")(x), contexts.of(layer), cache, layer
        )
        x = x + attn
        # Layers that are scanned are alike, see `Qwen3MoE`.
        is_dense = layer in cfg.dense_layers if isinstance(layer, int) else bool(cfg.dense_layers)
        mlp = (llama.MLP if is_dense else MixtureOfExperts)(cfg, **kinds, name="mlp")
        x = x + mlp(norm(self, "post_attention_layernorm")(x))
        return (constrain(x, *RESIDUAL_AXES), cache), None


class Qwen3MoE(llama.Llama):
    """The stack of blocks, from token ids to hidden states `[B, T, D]`."""

    block: ClassVar[Any] = Block

    def setup(self) -> None:
        if self.is_scanned and not self.config.is_uniform:
            layers = ", ".join(map(str, self.config.dense_layers))  # pyright: ignore[reportAttributeAccessIssue]
            raise InputError(
                f"scan_layers=true: layers {layers} of this model have no experts (config.json: mlp_only_layers, "
                "decoder_sparse_step), and only layers that are alike can be scanned; set it to false"
            )
        super().setup()
