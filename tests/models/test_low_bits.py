"""int8 and NF4 weights against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxrl_lm.models import low_bits
from jaxrl_lm.models.low_bits import BLOCK, NF4

WEIGHT = np.random.default_rng(0).normal(size=(3, 2 * BLOCK + 11)).astype(np.float32)


def test_nf4_has_the_quantiles_of_the_normal_distribution_as_bitsandbytes_makes_them():
    positive = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    codes = np.sort([*positive, 0.0, *negative])
    np.testing.assert_allclose(NF4, codes / codes.max(), rtol=0, atol=1e-6)


def test_nf4_dequantises_to_the_nearest_code_of_each_block():
    leaves = low_bits.quantise("nf4", jnp.asarray(WEIGHT))
    found = np.asarray(low_bits.dequantise(leaves, WEIGHT.shape[1]))
    for row, expected in zip(WEIGHT, found, strict=True):
        for start in range(0, len(row), BLOCK):
            block = row[start : start + BLOCK]
            scale = np.max(np.abs(block))
            nearest = [NF4[np.argmin(np.abs(NF4 - value / scale))] * scale for value in block]
            np.testing.assert_allclose(expected[start : start + BLOCK], nearest, rtol=0, atol=1e-6)


def test_nf4_packs_two_codes_in_a_byte_the_first_one_high():
    weight = np.zeros((1, BLOCK), np.float32)
    weight[0, :4] = [1.0, -1.0, 0.0, NF4[3]]
    packed = np.asarray(low_bits.quantise("nf4", jnp.asarray(weight))["weight_nf4"])
    assert packed[0, :2].tolist() == [0xF0, 0x73]
    assert set(packed[0, 2:].tolist()) == {0x77}


def test_int8_is_off_by_half_a_step_at_most():
    leaves = low_bits.quantise("int8", jnp.asarray(WEIGHT))
    found = np.asarray(low_bits.dequantise(leaves, WEIGHT.shape[1]))
    step = np.max(np.abs(WEIGHT), axis=1, keepdims=True) / 127
    assert np.max(np.abs(found - WEIGHT) / step) <= 0.5 + 1e-5
    np.testing.assert_array_equal(np.max(np.abs(leaves["weight_int8"]), axis=1), 127)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_rows_of_zeros_stay_zero(kind):
    leaves = low_bits.quantise(kind, jnp.zeros((2, 70)))
    np.testing.assert_array_equal(low_bits.dequantise(leaves, 70), np.zeros((2, 70)))


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8 + 32 / 512), ("nf4", 4 + 32 / BLOCK)])
def test_memory_is_that_of_the_codes_and_scales_and_the_specs_describe_them(kind, bits):
    leaves = low_bits.quantise(kind, jnp.ones((2, 7, 512)))  # of two layers
    assert sum(leaf.nbytes for leaf in leaves.values()) * 8 == bits * 2 * 7 * 512
    specs = low_bits.leaf_specs(kind, (7, 512), ("mlp", "embed"))
    assert specs.keys() == leaves.keys()
    for name, spec in specs.items():
        assert (2, *spec.shape) == leaves[name].shape
        assert spec.dtype == leaves[name].dtype
        assert len(spec.axes) == len(spec.shape)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_stacked_layers_are_quantised_as_each_alone(kind):
    stacked = low_bits.quantise(kind, jnp.stack([jnp.asarray(WEIGHT), 2 * jnp.asarray(WEIGHT)]))
    alone = low_bits.quantise(kind, jnp.asarray(WEIGHT))
    jax.tree.map(lambda both, one: np.testing.assert_array_equal(both[0], one), stacked, alone)
    np.testing.assert_array_equal(stacked["weight_scale"][1], 2 * alone["weight_scale"])
