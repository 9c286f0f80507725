"""The product of every projection, on either side of the number of rows at which a CPU turns it around."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrl_lm.models import low_bits
from jaxrl_lm.models.linear import FEW_ROWS, Linear, product, quantised_product


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("out_dtype", [None, jnp.float32])
def test_product_is_x_times_the_weight_transposed(rows: int, dtype, out_dtype):
    x, weight = (
        jax.random.normal(jax.random.key(seed), shape).astype(dtype)
        for seed, shape in enumerate([(rows, 1, 12), (7, 12)])
    )
    found = jax.jit(lambda x, w: product(x, w, out_dtype=out_dtype))(x, weight)
    assert found.dtype == (out_dtype or dtype)
    assert found.shape == (rows, 1, 7)
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    tolerance = 1e-5 if jnp.float32 in (dtype, out_dtype) else 0.05
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [2, FEW_ROWS + 1])
def test_gradients_and_batches_are_those_of_the_plain_product(rows: int):
    x, weight = jax.random.normal(jax.random.key(0), (3, rows, 5)), jax.random.normal(jax.random.key(1), (4, 5))

    def loss(multiply, x, weight):
        return jnp.sum(jnp.sin(jax.checkpoint(multiply)(x, weight)))

    grads = jax.jit(jax.vmap(jax.grad(lambda x, w: loss(product, x, w), argnums=(0, 1)), (0, None)))(x, weight)
    plain = jax.vmap(jax.grad(lambda x, w: loss(lambda a, b: a @ b.T, x, w), argnums=(0, 1)), (0, None))(x, weight)
    for found, expected in zip(grads, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_layer_adds_its_bias_and_keeps_its_weight_as_torch_does():
    layer = Linear(3, ("mlp", "embed"), use_bias=True, init_std=0.1, dtype=jnp.float32, param_dtype=jnp.float32)
    params = nn.meta.unbox(layer.init(jax.random.key(0), jnp.ones((1, 2))))["params"]
    assert jnp.shape(params["weight"]) == (3, 2)  # pyright: ignore[reportArgumentType]
    params = {**params, "bias": jnp.array([1.0, 2.0, 3.0])}
    output = jnp.asarray(layer.apply({"params": params}, jnp.zeros((2, 2))))
    np.testing.assert_allclose(output, [[1, 2, 3]] * 2)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("rows", [2, FEW_ROWS + 1])
def test_product_with_a_quantised_weight_and_its_gradient_are_those_of_the_dequantised_one(kind, rows):
    x, weight = jax.random.normal(jax.random.key(0), (3, rows, 70)), jax.random.normal(jax.random.key(1), (4, 70))
    leaves = low_bits.quantise(kind, weight)
    plain = np.asarray(low_bits.dequantise(leaves, 70))

    def loss(multiply, x):
        return jnp.sum(jnp.sin(multiply(x)))

    found, gradient = jax.jit(jax.vmap(jax.value_and_grad(lambda x: loss(lambda x: quantised_product(x, leaves), x))))(
        x
    )
    expected, slope = jax.vmap(jax.value_and_grad(lambda x: loss(lambda x: x @ plain.T, x)))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4)
    low = quantised_product(x.astype(jnp.bfloat16), leaves)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), x @ plain.T, rtol=0.02, atol=0.4)
