"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the feed-forward network, in all or some layers.

Each token is sent to its k experts of highest probability, and no token is dropped. There is no loss that balances the
experts: training on rewards or examples has none in TRL either, unless `output_router_logits` asks for it.

Reference: Qwen Team, 2025, Qwen3 Technical Report; Shazeer et al., 2017, Outrageously Large Neural Networks: The
Sparsely-Gated Mixture-of-Experts Layer.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_lm import checks
from jaxrl_lm.distributed.sharding import constrain
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


class Experts(nn.Module):
    """One projection of all experts, `[M, D]` to `[M, F]`, for rows that are sorted by expert.

    The rows of an expert are as many as tokens chose it, which is not known when the program is compiled. So a device
    that had some of the experts would need room for the rows of all. Therefore each expert is split over the devices of
    the tensor axis by its mlp axis, as a feed-forward network is, and the axis of experts is not split.
    """

    num_experts: int
    features: int
    axes: tuple[str, str]
    init_std: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, rows: jax.Array, sizes: jax.Array) -> jax.Array:
        shape = (self.num_experts, self.features, rows.shape[-1])
        init: Any = nn.with_logical_partitioning(nn.initializers.normal(self.init_std), ("experts", *self.axes))
        weight = self.param("weight", init, shape, self.param_dtype).astype(self.dtype)
        return jax.lax.ragged_dot_general(rows.astype(self.dtype), weight, sizes, _ROWS_BY_EXPERT)


class MLPOfExperts(nn.Module):
    """down(act(gate(x)) * up(x)) of each expert."""

    config: Qwen3MoEConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, rows: jax.Array, sizes: jax.Array) -> jax.Array:
        cfg = self.config

        def project(features: int, axes: tuple[str, str], name: str) -> Experts:
            kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            return Experts(cfg.num_experts, features, axes, cfg.init_std, **kinds, name=name)

        gate = project(cfg.expert_size, ("mlp", "embed"), "gate_proj")(rows, sizes)
        up = project(cfg.expert_size, ("mlp", "embed"), "up_proj")(rows, sizes)
        return project(cfg.model_size, ("embed", "mlp"), "down_proj")(ACTIVATIONS[cfg.activation](gate) * up, sizes)


class MixtureOfExperts(nn.Module):
    """sum over a token's k experts of p_e MLP_e(x); the probabilities p are a float32 softmax over all experts.

    XLA computes only the experts that a row was sent to on accelerators; on a CPU it computes all, and masks.
    """

    config: Qwen3MoEConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        tokens = x.reshape(-1, cfg.model_size)
        router = Linear(
            cfg.num_experts,
            ("experts", "embed"),
            use_bias=False,
            init_std=cfg.init_std,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            name="gate",
        )
        weights, chosen = jax.lax.top_k(jax.nn.softmax(router(tokens), axis=-1), cfg.num_chosen)
        if cfg.is_normalized:
            weights /= jnp.sum(weights, axis=-1, keepdims=True)
        order = jnp.argsort(chosen.reshape(-1))  # of pairs of token and expert
        sizes = jnp.bincount(chosen.reshape(-1), length=cfg.num_experts)
        experts = MLPOfExperts(cfg, self.dtype, self.param_dtype, name="experts")
        outputs = experts(tokens[order // cfg.num_chosen], sizes)
        by_token = outputs[jnp.argsort(order)].reshape(-1, cfg.num_chosen, cfg.model_size)
        mixed = jnp.einsum("MkD,Mk->MD", by_token, weights, preferred_element_type=jnp.float32)
        return mixed.astype(self.dtype).reshape(x.shape)


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
        cfg: Any = self.config
        if self.is_scanned and 0 < len(cfg.dense_layers) < cfg.num_layers:
            raise InputError(
                f"is_scanned=true: layers {', '.join(map(str, cfg.dense_layers))} of this model have no experts "
                "(config.json: mlp_only_layers, decoder_sparse_step), and only layers that are alike can be scanned; "
                "set it to false"
            )
        super().setup()
