"""Quantised checkpoints: float8 weights are dequantised; other methods are refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxrl_lm.errors import InputError
from jaxrl_lm.models.stored import Stored
from jaxrl_lm.models.weights import Tensors

_REMEDY = (
    "load the original model (see its model card), or dequantise it with transformers on a machine "
    "that can run it: AutoModelForCausalLM.from_pretrained(FOLDER).dequantize().save_pretrained(NEW_FOLDER)"
)
_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors")
_FLOAT8 = tuple(map(np.dtype, (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)))
_SCALES = ("weight_scale_inv", "weight_scale")  # both are factors; the first is DeepSeek's name
_OF_ACTIVATIONS = ("input_scale", "activation_scale")  # activations are not quantised here


def check_config(quantization: Any, path: Path) -> None:
    """Refuse unsupported quantisation methods.

    Args:
        quantization: `quantization_config`, or None.
        path: path of config.json, for the message.

    Raises:
        InputError: the method is not float8 weights with scales.
    """
    if quantization is None:
        return
    given = quantization if isinstance(quantization, dict) else {}
    method = given.get("quant_method")
    is_known = method in _METHODS and not given.get("transform_config")
    if method == "compressed-tensors":
        is_known &= given.get("format") in ("float-quantized", "naive-quantized", "dense")
    if not is_known:
        kind = method or ("bitsandbytes" if given.get("load_in_8bit") or given.get("load_in_4bit") else quantization)
        raise InputError(
            f"{path}: quantization_config: weights quantised by {kind!r} are not supported (only "
            f"float8 with scales is); {_REMEDY}"
        )


def dequantise(tensors: Tensors, quantization: Any, folder: Path) -> Tensors:
    """Multiply each float8 weight by its scale, in float32, and drop the scales.

    `w[i, j] = q[i, j] * scale[i // R, j // C]` with blocks `[R, C]`, which may also be the whole tensor or one row.

    Args:
        tensors: by name.
        quantization: `quantization_config`, whose `weight_block_size` is `[R, C]`, or None.
        folder: the model folder, for messages.

    Raises:
        InputError: a float8 weight has no scale, or one of the wrong shape.
    """
    block_size = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOAT8:
            continue
        stem = name.removesuffix("weight")
        scale_name = next((stem + scale for scale in _SCALES if stem + scale in tensors), None)
        if not name.endswith("weight") or scale_name is None:
            raise InputError(f"{folder}: tensor {name} is {tensor.dtype} without a weight_scale; {_REMEDY}")
        scale = _spread(tensors[scale_name], tensor.shape, block_size)
        if scale is None:
            raise InputError(
                f"{folder}: tensor {scale_name} {tensors[scale_name].dtype}{list(tensors[scale_name].shape)} is not a "
                f"scale for {name} {list(tensor.shape)} in blocks of {block_size}; {_REMEDY}"
            )
        result[name] = tensor.astype(np.float32) * scale
        for spent in (scale_name, *(stem + suffix for suffix in _OF_ACTIVATIONS)):
            result.pop(spent, None)
    return result


def _spread(scale: np.ndarray, shape: tuple[int, ...], block_size: Any) -> np.ndarray | None:
    """A scale repeated over the entries of a weight; None if the shapes do not match."""
    if not jnp.issubdtype(scale.dtype, jnp.floating) or scale.dtype.itemsize < 2:
        return None
    scale = scale.astype(np.float32)
    if scale.size == 1:
        return scale.reshape((1,) * len(shape))
    if scale.ndim != 2 or len(shape) != 2:
        return None
    for axis, size in enumerate(shape):
        number = scale.shape[axis]
        block = block_size[axis] if block_size else max(1, size // number)
        if number not in (-(-size // block), 1) or (not block_size and size % number):
            return None
        scale = np.repeat(scale, block if number > 1 else size, axis=axis)
    return scale[: shape[0], : shape[1]]


def check_numbers(tensors: Mapping[str, Stored], folder: Path) -> None:
    """Refuse weights that are not floating-point numbers.

    Raises:
        InputError: a tensor has integers, like quantised weights.
    """
    for name, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise InputError(
                f"{folder}: tensor {name} has dtype {tensor.dtype}, not floating point: the weights are "
                f"quantised; {_REMEDY}"
            )
