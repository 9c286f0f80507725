"""Rotary position embeddings, with the context extensions that public checkpoints use.

Reference: Su et al., 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError

RotaryKind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotation frequencies of each pair of dimensions.

    The frequencies of "dynamic" and "longrope" depend on the length of the call: 1 + the largest position in any row,
    as in transformers. A key is rotated once, with the frequencies of the call that writes it to the cache. Generation
    beyond `original_positions` therefore mixes frequencies, like transformers' `generate`, and its logits differ from
    those of one pass over the whole sequence. Reinforcement learning needs the two to agree: keep prompt and completion
    within `original_positions`.

    Attributes:
        theta: base of the geometric series of wavelengths.
        kind: "default"; "linear" divides all frequencies by `factor`; "dynamic" increases theta with the sequence
            length beyond `original_positions`; "yarn" and "llama3" divide slow dimensions only; "longrope" has a
            divisor per dimension, one list for short and one for long sequences.
        factor: stretch of the context.
        original_positions: context length, in tokens, before stretching.
        attention_factor: factor on cosine and sine, and so on queries and keys (yarn, longrope).
        low_frequency_factor: llama3: dimensions with fewer rotations in the original context are divided.
        high_frequency_factor: llama3: those with more rotations are unchanged; those in between are interpolated.
        beta_fast: yarn: dimensions with more rotations in the original context are unchanged.
        beta_slow: yarn: those with fewer rotations are divided; those in between are interpolated.
        is_truncated: yarn: whether the two limits are rounded to whole dimensions.
        short_factors: longrope: divisors up to `original_positions`, one per pair of dimensions.
        long_factors: longrope: divisors beyond `original_positions`.
        fraction: of each head's dimensions, the first ones, that are rotated.

    Reference: Peng et al., 2023, YaRN: Efficient Context Window Extension of Large Language Models (yarn, dynamic);
    Ding et al., 2024, LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens (longrope).
    """

    theta: float
    kind: RotaryKind = "default"
    factor: float = 1.0
    original_positions: int = 8192
    attention_factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    fraction: float = 1.0

    def __post_init__(self) -> None:
        checks.above(self, 0, "factor", "original_positions", prefix="config.json: rope_parameters: ")
        checks.above(self, 1, "theta", prefix="config.json: rope_parameters: rope_")
        if not 0 < self.fraction <= 1:
            raise InputError(
                f"config.json: rope_parameters: partial_rotary_factor={self.fraction} must be above 0 and at most 1"
            )
        if self.kind == "llama3" and not self.high_frequency_factor > self.low_frequency_factor:
            raise InputError(
                f"config.json: rope_parameters: high_freq_factor={self.high_frequency_factor} must be above "
                f"low_freq_factor={self.low_frequency_factor}"
            )

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies depend on the sequence length."""
        return self.kind in ("dynamic", "longrope")

    def longest(self, positions: int) -> int:
        """The context in tokens, of a model with `max_position_embeddings: positions`."""
        return max(positions, int(self.factor * self.original_positions))

    def num_rotated(self, head_size: int) -> int:
        """How many dimensions of a head are rotated."""
        return int(self.fraction * head_size)

    def check_head_size(self, head_size: int) -> None:
        """Refuse heads that cannot be rotated in pairs of dimensions.

        Raises:
            InputError: names the size.
        """
        size = self.num_rotated(head_size)
        if size % 2 or size < 2 or (self.kind == "dynamic" and size == 2):
            part = "" if size == head_size else f" * partial_rotary_factor={self.fraction}"
            raise InputError(
                f"config.json: head_dim={head_size}{part} must be even for rotary positions (dynamic: above 2)"
            )
        if self.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                number = len(getattr(self, name))
                if number != size // 2:
                    raise InputError(
                        f"config.json: rope_parameters: {name.removesuffix('s')} has {number} numbers, but "
                        f"head_dim={head_size} needs {size // 2}"
                    )


def rotary_from_hf(config: dict[str, Any], *, is_partial: bool = False) -> RotaryConfig:
    """Read `rope_parameters` of a configuration completed by transformers.

    Args:
        config: the configuration.
        is_partial: whether transformers' class of the model reads `partial_rotary_factor`.

    Raises:
        InputError: the rotary embedding is not supported.
    """
    rope = config.get("rope_parameters") or {}
    kind, positions = rope.get("rope_type", "default"), config["max_position_embeddings"]
    if kind not in get_args(RotaryKind):
        raise InputError(
            f"config.json: rope_type={kind!r} is not supported; supported: {', '.join(get_args(RotaryKind))}"
        )
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise InputError(
            f"config.json: rope_parameters has separate values for {', '.join(nested)}; only one set for all layers "
            "is supported"
        )
    if not is_partial and kind != "default" and (rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise InputError(
            f"config.json: partial_rotary_factor={rope['partial_rotary_factor']} is not supported with "
            f"rope_type={kind!r}; transformers' class fails on it too"
        )
    original = rope.get("original_max_position_embeddings") if kind in ("yarn", "longrope", "llama3") else None
    original = int(positions if original is None else original)
    factor = 1.0 if kind == "default" else rope.get("factor")
    if factor is None and kind in ("yarn", "longrope"):
        factor = positions / original
    return RotaryConfig(
        theta=float(rope.get("rope_theta", 10_000.0)),
        kind=kind,
        factor=float(factor),  # pyright: ignore[reportArgumentType] None is refused like any other wrong value
        original_positions=original,
        attention_factor=_attention_factor(kind, rope, float(factor or 1.0), original),
        low_frequency_factor=float(rope.get("low_freq_factor", 1.0)),
        high_frequency_factor=float(rope.get("high_freq_factor", 4.0)),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        is_truncated=bool(rope.get("truncate", True)),
        short_factors=tuple(map(float, rope.get("short_factor") or ())),
        long_factors=tuple(map(float, rope.get("long_factor") or ())),
        fraction=float(rope.get("partial_rotary_factor", 1.0)) if is_partial else 1.0,
    )


def _attention_factor(kind: str, rope: dict[str, Any], factor: float, original: int) -> float:
    """The given attention factor, or the one recommended in the method's paper."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    scale, scale_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if scale and scale_all:
        return (0.1 * scale * math.log(factor) + 1) / (0.1 * scale_all * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def frequencies(
    config: RotaryConfig, head_size: int, length: Int[Array, ""] | int = 0
) -> Float[np.ndarray, " half"] | Float[Array, " half"]:
    """Radians per position of each rotated pair of dimensions, float32 `[H/2]` if all are.

    Args:
        config: kind and settings.
        head_size: H.
        length: sequence length in tokens; used if `config.depends_on_length`.
    """
    size = config.num_rotated(head_size)
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    freqs = config.theta**-exponents
    if config.kind == "linear":
        freqs = freqs / config.factor
    elif config.kind == "llama3":
        turns = config.original_positions * freqs / (2 * math.pi)
        span = config.high_frequency_factor - config.low_frequency_factor
        freqs = _divide_partly(freqs, config.factor, (turns - config.low_frequency_factor) / span)
    elif config.kind == "yarn":
        freqs = _divide_partly(freqs, config.factor, 1 - _yarn_ramp(config, size))
    elif config.kind == "longrope":
        is_long = jnp.asarray(length) > config.original_positions
        return jnp.where(
            is_long, *(jnp.float32(freqs / np.array(f)) for f in (config.long_factors, config.short_factors))
        )
    elif config.kind == "dynamic":
        excess = jnp.maximum(jnp.asarray(length, jnp.float32) / config.original_positions - 1, 0)
        theta_growth = (1 + config.factor * excess) ** (size / (size - 2))
        return jnp.float32(freqs) * theta_growth ** -jnp.float32(exponents)
    return freqs.astype(np.float32)


def _divide_partly(freqs: np.ndarray, factor: float, kept: np.ndarray) -> np.ndarray:
    """Frequencies: unchanged where `kept` >= 1, divided where `kept` <= 0, interpolated in between."""
    kept = np.clip(kept, 0.0, 1.0)
    return kept * freqs + (1 - kept) * freqs / factor


def _yarn_ramp(config: RotaryConfig, head_size: int) -> np.ndarray:
    """Ramp over the pairs of dimensions: 0 up to the one with `beta_fast` rotations, 1 from `beta_slow`."""

    def pair_that_turns(times: float) -> float:
        wavelength = config.original_positions / (times * 2 * math.pi)
        return head_size * math.log(wavelength) / (2 * math.log(config.theta))

    low, high = pair_that_turns(config.beta_fast), pair_that_turns(config.beta_slow)
    if config.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    width = high - low if high != low else 0.001
    return (np.arange(head_size // 2) - low) / width


def rotary_table(
    config: RotaryConfig, position_ids: Int[Array, "B T"], head_size: int, num_positions: int
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosine and sine of each position's angles times the attention factor, float32, with an axis for heads.

    They are looked up in a table of `num_positions` positions. If they were computed from `position_ids`, XLA's CPU
    compiler would fuse them into every layer and recompute them there. Length-dependent frequencies leave no choice.
    """
    if config.depends_on_length:
        freqs = frequencies(config, head_size, jnp.max(position_ids) + 1)
        angles = position_ids[..., None].astype(jnp.float32) * freqs
        cos, sin = jnp.cos(angles), jnp.sin(angles)
    else:
        angles = jnp.arange(num_positions, dtype=jnp.float32)[:, None] * frequencies(config, head_size)
        cos, sin = (jnp.take(table, position_ids, axis=0) for table in (jnp.cos(angles), jnp.sin(angles)))
    if config.attention_factor != 1.0:
        cos, sin = cos * config.attention_factor, sin * config.attention_factor
    return cos[:, :, None], sin[:, :, None]


def rotate(
    x: Float[Array, "B T N H"], table: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
) -> Float[Array, "B T N H"]:
    """Rotate the pair (i, i + R/2) of each head by its angle, in float32; R, twice the table's width, is at most H."""
    cos, sin = table
    size = 2 * cos.shape[-1]
    if size < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :size], table), x[..., size:]], axis=-1)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)
