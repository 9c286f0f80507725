"""Fused attention of whole rows, forward and backward: logits of all pairs of tokens are never in memory.

Splash attention on TPUs, cuDNN's flash attention on NVIDIA GPUs. `choose` picks by the platform that a program is
traced for. Picking when it is lowered (`jax.lax.platform_dependent`) would keep what every branch needs for the
backward pass, the logits of plain attention among it.

Logits, softmax and sums are float32 in both, as in plain attention. Products of float32 on TPUs follow
`jax_default_matmul_precision`, as elsewhere; under a precision that TPUs' kernels lack, attention is plain.

Letters as in `attention`.

Reference: Dao, 2024, FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning;
`jax.experimental.pallas.ops.tpu.splash_attention`; `jax.nn.dot_product_attention`.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_lm.distributed.sharding import by_part

BLOCK = 128
"""Columns of the smallest block of TPUs. Rows are padded to a multiple; kernels do not pay off for shorter ones."""

_LARGEST_BLOCK = 512
_SINGLE_PASS, _FLOAT32 = {None, "default", "bfloat16"}, {"highest", "float32"}  # names of precisions of products
_HEADS = ("cache_batch", "cache_heads", None, None)

Kernel = Literal["splash", "cudnn"]


def choose(num_tokens: int, head_size: int, dtype: Any, softcap: float | None) -> Kernel | None:
    """The kernel for rows of this length on the platform that is traced for; None for plain attention.

    That platform is the one of the mesh in use, which may be of described devices, or the default one. cuDNN has no
    softcap and no float32, and reads heads of at most 128 (on Hopper and later GPUs 256), a multiple of 8.

    Args:
        num_tokens: T.
        head_size: H.
        dtype: of the queries.
        softcap: bound of the logits.
    """
    if num_tokens < BLOCK:
        return None
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    if platform == "tpu":
        precisions = _SINGLE_PASS | (_FLOAT32 if dtype == jnp.float32 else set())
        settings: Any = jax.config
        return "splash" if settings.jax_default_matmul_precision in precisions else None
    if platform != "gpu" or softcap is not None or dtype not in (jnp.bfloat16, jnp.float16) or head_size % 8:
        return None
    return "cudnn" if head_size <= _largest_head(jax.local_devices()[0]) else None


def _largest_head(device: Any) -> int:
    """The largest head that cuDNN's flash attention reads on a GPU; 0 where it has none: before Ampere, or AMD's."""
    if "cuda" not in device.client.platform_version:
        return 0
    major = int(device.compute_capability.split(".")[0])
    return 256 if major >= 9 else 128 if major == 8 else 0


def splash(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K T H"],
    values: Float[Array, "B K T H"],
    segments: Int[Array, "B T"],
    *,
    scale: float | jax.Array,
    softcap: float | None = None,
    window: int | None = None,
    is_causal: bool = True,
) -> Float[Array, "B T N H"]:
    """Attention within segments by TPUs' splash attention.

    Queries are multiplied by `scale` in their own dtype: for bfloat16 that rounds them once more than plain attention
    does, unless `scale` is a power of 2. Queries of padding attend to padding, so their numbers are not those of plain
    attention.

    Args:
        queries: of T tokens.
        keys: of the same tokens.
        values: of the same tokens.
        segments: the sequence of each token; 0 for padding.
        scale: of the logits.
        softcap: bound of the logits.
        window: how many tokens (including itself) a causal query attends to; None for all.
        is_causal: whether queries attend to no later token.
    """
    num_tokens = queries.shape[1]
    queries = jnp.swapaxes(queries * jnp.asarray(scale, queries.dtype), 1, 2)
    queries, keys, values = (_pad(each, 2) for each in (queries, keys, values))
    axes = (_HEADS, _HEADS, _HEADS, ("cache_batch", None))
    function = partial(_splash_part, softcap=softcap, window=window, is_causal=is_causal)
    mixed = by_part(function, axes, _HEADS, queries, keys, values, _pad(segments, 1))
    return jnp.swapaxes(mixed[:, :, :num_tokens], 1, 2)


def _splash_part(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    segments: jax.Array,
    *,
    softcap: float | None,
    window: int | None,
    is_causal: bool,
) -> jax.Array:
    """`[B, N, T, H]` of one device, T a multiple of `BLOCK`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    num_heads, num_tokens = queries.shape[1:3]
    shape = (num_tokens, num_tokens)
    mask = masks.CausalMask(shape) if is_causal else masks.FullMask(shape)
    if window is not None:
        mask = masks.LocalMask(shape, (window - 1, 0), 0)
    block = next(size for size in (_LARGEST_BLOCK, 256, BLOCK) if num_tokens % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    attend: Any = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * num_heads),
        block_sizes=kernels.BlockSizes(**dict.fromkeys(names, block)),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
    )
    return jax.vmap(attend)(queries, keys, values, kernels.SegmentIds(segments, segments))


def cudnn(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K T H"],
    values: Float[Array, "B K T H"],
    mask: Bool[Array, "B T T"],
    *,
    scale: float | jax.Array,
    is_causal: bool = True,
) -> Float[Array, "B T N H"]:
    """Attention by cuDNN's flash attention.

    cuDNN adds the mask to the logits, in the dtype of the queries; `is_causal` lets it skip blocks.

    Args:
        queries: of T tokens.
        keys: of the same tokens.
        values: of the same tokens.
        mask: which keys each query attends to.
        scale: of the logits; where it is traced, the queries are multiplied by it.
        is_causal: whether the mask has no later key.
    """
    num_tokens = queries.shape[1]
    if isinstance(scale, jax.Array):
        queries, scale = queries * scale.astype(queries.dtype), 1.0
    keys, values = (jnp.swapaxes(each, 1, 2) for each in (keys, values))
    queries, keys, values = (_pad(each, 1, 2) for each in (queries, keys, values))
    mask = _pad(_pad(mask, 1, 2), 2, 2)[:, None]

    def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
        how: dict[str, Any] = {"scale": scale, "is_causal": is_causal, "implementation": "cudnn"}
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask, **how)

    heads = ("cache_batch", None, "cache_heads", None)
    axes = (heads, heads, heads, ("cache_batch", None, None, None))
    return by_part(attend, axes, heads, queries, keys, values, mask)[:, :num_tokens]


def _pad(x: jax.Array, axis: int, multiple: int = BLOCK) -> jax.Array:
    """Zeros at the end of an axis, up to a multiple."""
    missing = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, missing if each == axis else 0) for each in range(x.ndim)])
