"""Tensors that stay in their file: views of its memory map, and stacks of them."""

import mmap

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxrl_lm.models import open_pretrained, save_pretrained
from jaxrl_lm.models.stored import Stack, read
from jaxrl_lm.models.weights import read_file, write_file
from tests.models import tiny

RNG = np.random.default_rng(0)


def nested() -> tuple[Stack, np.ndarray]:
    """Two layers of three matrices `[4, 5]`, and the same in one array."""
    parts = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    return Stack([Stack(list(layer)) for layer in parts]), parts


@pytest.mark.parametrize("index", [(), (slice(1, 2),), (slice(None), slice(0, 2), slice(None), slice(2, 5))])
def test_parts_of_a_stack_are_those_of_the_array(index):
    stack, whole = nested()
    assert stack.shape == whole.shape
    np.testing.assert_array_equal(read(stack, index), whole[index])
    turned = whole.swapaxes(-1, -2)
    np.testing.assert_array_equal(read(stack.swapaxes(-1, -2), index), turned[index])
    np.testing.assert_array_equal(read(stack, index, ml_dtypes.bfloat16), whole[index].astype(ml_dtypes.bfloat16))


def test_a_part_is_a_copy_in_the_order_of_rows():
    whole = np.zeros((3, 4), np.float32)
    part = read(whole.T, (slice(0, 2),))
    part += 1
    assert part.flags.c_contiguous
    assert not whole.any()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.bool_])
def test_a_file_gives_back_what_was_written(tmp_path, dtype):
    tensors = {"a": RNG.normal(size=(3, 4)).astype(dtype), "b": np.zeros((0, 2), dtype)}
    write_file(tmp_path / "x.safetensors", tensors, "safetensors")
    found = read_file(tmp_path / "x.safetensors", "safetensors")
    assert {name: (leaf.dtype, leaf.tolist()) for name, leaf in found.items()} == {
        name: (leaf.dtype, leaf.tolist()) for name, leaf in tensors.items()
    }
    assert not found["a"].flags.writeable


def in_memory(tensor: np.ndarray | Stack) -> bool:
    """Whether some of a tensor is anywhere but in a file's memory map."""
    if isinstance(tensor, Stack):
        return any(in_memory(part) for part in tensor.parts)
    base = tensor
    while isinstance(base, np.ndarray):
        base = base.base
    return not isinstance(base, mmap.mmap)


@pytest.mark.parametrize("model_type", ["gpt2", "phi3", "qwen3_moe"])
def test_opening_reads_no_tensor(tmp_path, model_type):
    save_pretrained(tmp_path, *tiny.random_model(model_type))
    _, stored = open_pretrained(tmp_path)
    assert not any(in_memory(tensor) for tensor in jax.tree.leaves(stored))
