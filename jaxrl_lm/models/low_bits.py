"""Weights of few bits for products whose weight is not trained: int8 by rows, and NF4 in blocks of 64.

    int8:  w[f, d] = q[f, d] * s[f],               s = max |w[f]| / 127
    nf4:   w[f, d] = NF4[q[f, d]] * s[f, d // 64], s = max |w| of the block

NF4 stores two codes per byte. Its blocks are those of bitsandbytes where D is a multiple of 64; otherwise the last
block of a row is shorter, where bitsandbytes lets blocks run over the ends of rows.

Reference: Dettmers et al., 2023, QLoRA: Efficient Finetuning of Quantized LLMs (without its quantization of scales).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.models.lora_config import Quantization

BLOCK = 64
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""The code book: quantiles of the standard normal distribution, scaled to [-1, 1], with an exact 0."""


class LeafSpec(NamedTuple):
    """A leaf of a quantised weight: its shape, dtype, and the logical axes of its dimensions."""

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]


def leaf_specs(kind: Quantization, shape: tuple[int, int], axes: tuple[str, str]) -> dict[str, LeafSpec]:
    """Leaves of a weight `[F, D]` by name.

    Args:
        kind: "int8" or "nf4".
        shape: F and D.
        axes: their logical names.
    """
    num_rows, size = shape
    if kind == "int8":
        return {
            "weight_int8": LeafSpec(shape, jnp.int8, axes),
            "weight_scale": LeafSpec((num_rows,), jnp.float32, axes[:1]),
        }
    num_blocks = -(-size // BLOCK)
    return {
        "weight_nf4": LeafSpec((num_rows, num_blocks * BLOCK // 2), jnp.uint8, axes),
        "weight_scale": LeafSpec((num_rows, num_blocks), jnp.float32, (axes[0], None)),
    }


def quantise(kind: Quantization, weight: jax.Array) -> dict[str, jax.Array]:
    """Leaves of a weight `[..., F, D]`, each row rounded to the nearest values."""
    weight = jnp.asarray(weight, jnp.float32)
    if kind == "int8":
        peak = jnp.max(jnp.abs(weight), axis=-1)
        scale = jnp.where(peak > 0, peak, 1.0) / 127
        return {"weight_int8": jnp.round(weight / scale[..., None]).astype(jnp.int8), "weight_scale": scale}
    *lead, size = weight.shape
    padded = jnp.pad(weight, [(0, 0)] * len(lead) + [(0, -size % BLOCK)])
    blocks = padded.reshape(*lead, -1, BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks / jnp.where(scale > 0, scale, 1.0)[..., None]
    codes = jnp.searchsorted((NF4[1:] + NF4[:-1]) / 2, unit).astype(jnp.uint8).reshape(*lead, -1, 2)
    return {"weight_nf4": codes[..., 0] << 4 | codes[..., 1], "weight_scale": scale}


def dequantise(leaves: dict[str, Any], size: int, dtype: Any = jnp.float32) -> jax.Array:
    """The weight `[..., F, D]`; `size` is D."""
    scale = leaves["weight_scale"]
    if "weight_int8" in leaves:
        return (leaves["weight_int8"] * scale[..., None]).astype(dtype)
    packed = leaves["weight_nf4"]
    codes = jnp.stack([packed >> 4, packed & 15], axis=-1)
    values = jnp.asarray(NF4)[codes].reshape(*scale.shape, BLOCK) * scale[..., None]
    return values.reshape(*packed.shape[:-1], -1)[..., :size].astype(dtype)
