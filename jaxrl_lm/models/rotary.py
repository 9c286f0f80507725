"""Rotary position embeddings, with the frequency scalings that public checkpoints use.

Reference: Su et al., 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrl_lm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """How fast each pair of dimensions turns.

    Attributes:
        theta: base of the geometric series of wavelengths.
        kind: "default", "linear" (all positions divided by `factor`) or "llama3" (only slow dimensions are).
        factor: stretch of the context.
        low_frequency_factor, high_frequency_factor: llama3: dimensions that turn fewer than the first (more than
            the second) times in the original context are stretched (left alone), those between are blended.
        original_positions: llama3: context length, in tokens, before stretching.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("default", "linear", "llama3"):
            raise InputError(
                f"config.json: rope_type={self.kind!r} is not supported; supported: default, linear, llama3"
            )


def rotary_from_hf(config: dict[str, Any]) -> RotaryConfig:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    return RotaryConfig(
        theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        kind=rope.get("rope_type", rope.get("type", "default")),
        factor=float(rope.get("factor", 1.0)),
        low_frequency_factor=float(rope.get("low_freq_factor", 1.0)),
        high_frequency_factor=float(rope.get("high_freq_factor", 4.0)),
        original_positions=int(rope.get("original_max_position_embeddings", 8192)),
    )


def frequencies(config: RotaryConfig, head_size: int) -> np.ndarray:
    """Radians a position of each pair of dimensions, float32 `[H/2]`."""
    freqs = config.theta ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if config.kind == "linear":
        freqs = freqs / config.factor
    elif config.kind == "llama3":
        turns = config.original_positions * freqs / (2 * math.pi)
        span = config.high_frequency_factor - config.low_frequency_factor
        kept = np.clip((turns - config.low_frequency_factor) / span, 0.0, 1.0)
        freqs = kept * freqs + (1 - kept) * freqs / config.factor
    return freqs.astype(np.float32)


def rotary_table(
    config: RotaryConfig, position_ids: Int[Array, "B T"], head_size: int, num_positions: int
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosine and sine of each position's angles, float32, one axis for the heads.

    They are looked up in a table of all positions below `num_positions`: where they are computed from `position_ids`
    directly, XLA's CPU compiler fuses them into every layer that reads them and computes them there again.
    """
    angles = jnp.arange(num_positions, dtype=jnp.float32)[:, None] * frequencies(config, head_size)
    cos, sin = (jnp.take(table, position_ids, axis=0) for table in (jnp.cos(angles), jnp.sin(angles)))
    return cos[:, :, None], sin[:, :, None]


def rotate(
    x: Float[Array, "B T N H"], table: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
) -> Float[Array, "B T N H"]:
    """Turn the pair (i, i + H/2) of each head by its angle, in float32."""
    cos, sin = table
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)
