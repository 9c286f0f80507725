"""The linear layer: activations times a weight whose rows are outputs.

With torch's layout `[F, D]`, the forward product, both backward products and decoding read the weight without
transposing it. On a CPU the update of a feed-forward layer is a fifth faster than with `[D, F]`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_lm.distributed.sharding import gather
from jaxrl_lm.models import low_bits
from jaxrl_lm.models.lora_config import QUANTIZATIONS, LoraConfig, Quantization

# Up to this many rows a CPU's product is bound by reading the weight (measured at 1 to 64 rows).
FEW_ROWS = 64


class Linear(nn.Module):
    """x W^T + b, and with an adapter + x A^T B^T * alpha / rank.

    The parameters decide what is computed: without `lora_a` and `lora_b` they are those of the base, and a quantised
    weight (`low_bits`) may replace the weight. It is initialised to 0, for it is only made from one that was loaded.

    Attributes:
        features: F, outputs.
        axes: logical names of the weight's axes F and D, which `distributed.RULES` maps to axes of the mesh.
        use_bias: whether to add b.
        init_std: standard deviation of the initial weight; b starts at 0.
        dtype: dtype of the product.
        param_dtype: dtype of weight and bias; adapters are float32.
        lora: adapters of the model, for its targets; None for none.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool
    init_std: float
    dtype: Any
    param_dtype: Any
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        quantization = self._quantization()
        if quantization == "none":
            init = nn.initializers.normal(self.init_std)
            weight = self._leaf("weight", init, (self.features, x.shape[-1]), self.axes)
            output = product(x, gather(weight.astype(self.dtype), *self.axes))
        else:
            output = self._quantised_product(x, quantization)
        if self.lora is not None and self._has_adapter(self.lora):
            output += self._adapter(x, self.lora)
        if self.use_bias:
            output += self._leaf("bias", nn.initializers.zeros, (self.features,), self.axes[:1]).astype(self.dtype)
        return output

    def _leaf(self, name: str, init: Any, shape: tuple[int, ...], axes: Any, dtype: Any = None) -> jax.Array:
        partitioned: Any = nn.with_logical_partitioning(init, axes)
        return self.param(name, partitioned, shape, dtype or self.param_dtype)

    def _has_adapter(self, lora: LoraConfig) -> bool:
        return bool(lora.matched_by(self.path)) if self.is_initializing() else self.has_variable("params", "lora_a")

    def _adapter(self, x: jax.Array, lora: LoraConfig) -> jax.Array:
        # As in PEFT: Kaiming's uniform distribution with a = sqrt(5), which is U(-1/sqrt(D), 1/sqrt(D)).
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)
        a = self._leaf("lora_a", init, (lora.rank, x.shape[-1]), ("rank", self.axes[1]), jnp.float32)
        b = self._leaf("lora_b", nn.initializers.zeros, (self.features, lora.rank), (self.axes[0], "rank"), jnp.float32)
        return product(product(x, a.astype(self.dtype)), b.astype(self.dtype)) * jnp.asarray(lora.scale, self.dtype)

    def _quantization(self) -> Quantization:
        if self.is_initializing():
            return "none" if self.lora is None else self.lora.quantize
        for kind in QUANTIZATIONS:
            if self.has_variable("params", f"weight_{kind}"):
                return kind
        return "none"

    def _quantised_product(self, x: jax.Array, quantization: Quantization) -> jax.Array:
        specs = low_bits.leaf_specs(quantization, (self.features, x.shape[-1]), self.axes)
        zeros = nn.initializers.zeros
        leaves = {name: self._leaf(name, zeros, spec.shape, spec.axes, spec.dtype) for name, spec in specs.items()}
        return quantised_product(x, leaves)


class Embedding(nn.Module):
    """A table of embeddings `[V, D]`, which the unembedding may read as well.

    Attributes:
        num_rows: V.
        features: D.
        init_std: standard deviation of the initial entries.
        dtype: dtype of what is looked up.
        param_dtype: dtype of the table.
        rows: logical name of the axis V.
    """

    num_rows: int
    features: int
    init_std: float
    dtype: Any
    param_dtype: Any
    rows: str = "vocab"

    def setup(self) -> None:
        init: Any = nn.with_logical_partitioning(nn.initializers.normal(self.init_std), (self.rows, "embed"))
        self.embedding = self.param("embedding", init, (self.num_rows, self.features), self.param_dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        table: Any = self.embedding
        return jnp.take(gather(table.astype(self.dtype), self.rows, "embed"), ids, axis=0)


def score_head(init: Any, *, use_bias: bool = True) -> nn.Dense:
    """A float32 layer with one output, for values and scores."""
    kernel_init = nn.with_logical_partitioning(init, ("embed", None))
    return nn.Dense(1, use_bias=use_bias, kernel_init=kernel_init, dtype=jnp.float32)


def product(x: jax.Array, weight: jax.Array, *, out_dtype: Any = None) -> jax.Array:
    """`x` `[..., D]` times `weight` `[F, D]`, `[..., F]`, accumulated and returned in `out_dtype` (None: theirs)."""
    rows = x.reshape(-1, x.shape[-1])
    multiply = partial(_rows_first, out_dtype=out_dtype)
    if rows.shape[0] <= FEW_ROWS:
        cpu = partial(_weight_first, out_dtype=out_dtype)
        flat = jax.lax.platform_dependent(rows, weight, cpu=cpu, default=multiply)
    else:
        flat = multiply(rows, weight)
    return flat.reshape(*x.shape[:-1], weight.shape[0])


def quantised_product(x: jax.Array, leaves: dict[str, jax.Array]) -> jax.Array:
    """`x` `[..., D]` times a quantised weight (`low_bits`), `[..., F]`; the weight has no gradient.

    Both passes dequantise the weight, and not before its other factor is there: or the dequantised weights of all
    layers would be in memory at once. XLA's compiler for CPUs removes the barriers too early: there, the
    backward pass of an unrolled stack finds the forward pass's weights kept. That of a scanned stack does not.
    """
    return _quantised_product(x.shape[-1], x, leaves)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantised_product(size: int, x: jax.Array, leaves: dict[str, jax.Array]) -> jax.Array:
    x, leaves = jax.lax.optimization_barrier((x, leaves))
    return product(x, low_bits.dequantise(leaves, size, x.dtype))


def _quantised_forward(size: int, x: jax.Array, leaves: Any) -> tuple[jax.Array, Any]:
    return _quantised_product(size, x, leaves), leaves


def _quantised_backward(size: int, leaves: Any, slope: jax.Array) -> tuple[jax.Array, None]:
    slope, leaves = jax.lax.optimization_barrier((slope, leaves))
    return jnp.einsum("...F,FD->...D", slope, low_bits.dequantise(leaves, size, slope.dtype)), None


_quantised_product.defvjp(_quantised_forward, _quantised_backward)


def _rows_first(rows: jax.Array, weight: jax.Array, out_dtype: Any) -> jax.Array:
    return jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=out_dtype)


def _weight_first(rows: jax.Array, weight: jax.Array, out_dtype: Any) -> jax.Array:
    """(W x^T)^T, because CPU kernels repack the right factor at every call, which is cheaper for the small one.

    The barriers keep XLA from swapping the factors back.
    """
    columns = jax.lax.optimization_barrier(rows.T)
    turned = jax.lax.dot(weight, columns, preferred_element_type=out_dtype)
    return jax.lax.optimization_barrier(turned).T
