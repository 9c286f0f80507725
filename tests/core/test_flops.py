"""Operations of products that programs of experts have: ragged ones, and those of a part of the batch."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxrl_lm.core.flops import count_flops
from jaxrl_lm.distributed.sharding import by_batch_part
from jaxrl_lm.models.qwen3_moe import mix_experts

B, T, K, D, F, E = 4, 3, 2, 8, 5, 6
ROWS = B * T * K
PRODUCTS = 3 * 2 * ROWS * D * F  # gate, up and down
MIX = 2 * ROWS * D  # the weighted sum over a token's experts
ARRAYS = {"x": (B, T, D), "weights": (B, T, K), "gate": (E, F, D), "up": (E, F, D), "down": (E, D, F)}


def mix(x, weights, *experts):
    chosen = jnp.zeros((B, T, K), jnp.int32)
    return by_batch_part(lambda *given: mix_experts(jnp.tanh, *given), 3, x, weights, chosen, *experts)


def traced(function):
    return jax.jit(function).trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ARRAYS.values())).jaxpr


def test_a_convolution_counts_its_kernel_for_every_output():
    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((7, 9, 9, 4), (3, 3, 2, 6)))
    assert count_flops(jax.jit(convolve).trace(*shapes).jaxpr) == 2 * (7 * 4 * 4 * 6) * (3 * 3 * 2)


@pytest.mark.parametrize("parts", [1, 4])
def test_rows_of_experts_count_once_on_any_mesh(parts):
    mesh = AbstractMesh((1, parts, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        forward = count_flops(traced(mix))
        gradients = count_flops(traced(jax.grad(lambda *given: jnp.sum(mix(*given)), argnums=range(5))))
    assert forward == PRODUCTS + MIX
    assert gradients == 3 * (PRODUCTS + MIX)
