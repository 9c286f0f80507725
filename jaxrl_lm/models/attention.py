"""Attention with a static key/value cache, shared by the decoder families.

Dimensions: B batch, T query positions, S key positions (cache slots), K key/value heads, G query heads per key/value
head, N = K * G query heads, Q = G * T queries that share keys, H head size, D model size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Float, Int

from jaxrl_lm.core.records import record
from jaxrl_lm.distributed.sharding import constrain
from jaxrl_lm.models import attention_kernels
from jaxrl_lm.types import PyTree

Kernels = Literal["auto", "plain"]
"""What computes attention without a cache: what `attention_kernels.choose` says, or always plain JAX."""

CACHE_AXES = ("cache_batch", "cache_heads", None, None)
MASKED_LOGIT = -1e30  # finite, so that a query without visible keys (padding) gives a mean, not NaN


@record
class KVCache:
    """Keys and values of the tokens seen so far, in a fixed number of slots.

    Attributes:
        keys: one array `[B, K, S, H]` per layer; of a scanned stack one array `[L, B, K, S, H]`.
        values: as `keys`.
        mask: which slots contain a token other than padding, bool `[B, S]`.
        length: slots in use, the same for every row (rows are left-padded), int32 scalar.
    """

    keys: PyTree
    values: PyTree
    mask: PyTree
    length: PyTree


def init_cache(
    *, num_layers: int, batch: int, size: int, num_kv_heads: int, head_size: int, dtype: Any, is_scanned: bool = False
) -> KVCache:
    """An empty cache with `size` slots per row."""
    shape = (batch, num_kv_heads, size, head_size)

    def zeros() -> PyTree:
        if is_scanned:
            return constrain(jnp.zeros((num_layers, *shape), dtype), "layers", *CACHE_AXES)
        return tuple(constrain(jnp.zeros(shape, dtype), *CACHE_AXES) for _ in range(num_layers))

    return KVCache(
        keys=zeros(),
        values=zeros(),
        mask=constrain(jnp.zeros((batch, size), bool), "cache_batch", None),
        length=jnp.zeros((), jnp.int32),
    )


def map_rows(cache: KVCache, function: Callable[[jax.Array, int], jax.Array]) -> KVCache:
    """The cache with `function(leaf, axis)` of each leaf, whose rows are along `axis`."""
    axis = 0 if isinstance(cache.keys, tuple) else 1
    keys, values = jax.tree.map(lambda leaf: function(leaf, axis), (cache.keys, cache.values))
    return replace(cache, keys=keys, values=values, mask=function(cache.mask, 0))


def repeat_rows(cache: KVCache, times: int) -> KVCache:
    """The cache with each row `times` times, one after the other."""
    return map_rows(cache, lambda leaf, axis: jnp.repeat(leaf, times, axis=axis))


def with_slots(cache: KVCache, size: int) -> KVCache:
    """The cache with `size` slots per row, at least as many as before; the new ones are empty."""

    def widen(leaf: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(leaf, [(0, size - leaf.shape[each] if each == axis else 0) for each in range(leaf.ndim)])

    def widen_layers(leaf: jax.Array) -> jax.Array:
        return constrain(widen(leaf, leaf.ndim - 2), *("layers",) * (leaf.ndim - 4), *CACHE_AXES)

    keys, values = jax.tree.map(widen_layers, (cache.keys, cache.values))
    return replace(cache, keys=keys, values=values, mask=widen(cache.mask, 1))


def token_positions(attention_mask: Int[Array, "B T"], cache: KVCache | None) -> Int[Array, "B T"]:
    """Position of each token in its row: the exclusive running sum of the mask, padding at 0."""
    seen = 0 if cache is None else jnp.sum(cache.mask, axis=-1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(seen + jnp.cumsum(attention_mask, axis=-1, dtype=jnp.int32) - 1, 0)


def segment_positions(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of each token in its own sequence, for packed rows; padding at 0."""
    slots = jnp.arange(segment_ids.shape[1])[None, :]
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    starts = jax.lax.cummax(jnp.where(segment_ids != before, slots, 0), axis=1)
    return jnp.where(segment_ids > 0, slots - starts, 0)


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class Visible:
    """Which keys each query attends to, as plain attention and as kernels read it.

    Attributes:
        mask: for each query, bool `[B, T, S]`.
        segments: the sequence of each token, 0 for padding, int32 `[B, T]`; None where plain attention is asked for, or
            keys are in a cache.
        kind: number of the layer's window in `windows`; traced in a scanned stack.
        windows: of the kinds of layers; None for all positions.
        is_causal: whether queries attend to no later key.
    """

    mask: PyTree
    segments: PyTree
    kind: PyTree = 0
    windows: tuple[int | None, ...] = field(default=(None,), metadata={"static": True})
    is_causal: bool = field(default=True, metadata={"static": True})


def visible_keys(
    attention_mask: Int[Array, "B T"],
    cache: KVCache | None,
    kernels: Kernels,
    windows: tuple[int | None, ...] = (None,),
    kind: int = 0,
) -> Visible:
    """Which keys each query may attend to: real tokens, not after itself, within the window of its kind if it has one.

    Without a cache the mask may contain segment ids: a query then attends to its own segment only.

    Rows (and segments) are contiguous between their padding, so slot distances equal position distances.

    Args:
        attention_mask: of the new tokens.
        cache: with earlier tokens.
        kernels: of a model's configuration.
        windows: of all kinds of layers, in slots.
        kind: of these layers.
    """
    window = windows[kind]
    num_queries = attention_mask.shape[1]
    key_mask = attention_mask.astype(bool)
    start: int | jax.Array = 0
    if cache is not None:
        key_mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, key_mask, cache.length, axis=1)
        start = cache.length
    query_slots = start + jnp.arange(num_queries)[:, None]
    key_slots = jnp.arange(key_mask.shape[1])[None, :]
    visible = key_slots <= query_slots
    if window is not None:
        visible &= query_slots - key_slots < window
    visible = visible[None] & key_mask[:, None, :]
    if cache is None:
        visible &= attention_mask[:, :, None] == attention_mask[:, None, :]
    segments = attention_mask if cache is None and kernels == "auto" else None
    return Visible(mask=visible, segments=segments, kind=kind, windows=windows)


def update_layer(
    cache: KVCache | None,
    layer: int | jax.Array,
    keys: Float[Array, "B T K H"],
    values: Float[Array, "B T K H"],
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"], KVCache | None]:
    """Keys and values that a layer's queries attend to: the new ones, after those in the cache if there is one.

    Args:
        cache: keys and values of earlier tokens.
        layer: number of the layer; traced in a scanned stack.
        keys: of the new tokens.
        values: of the new tokens.

    Returns:
        Keys, values, and the cache with the new ones in it; `advance` counts them after the last layer.
    """
    keys, values = (constrain(jnp.swapaxes(x, 1, 2), *CACHE_AXES) for x in (keys, values))
    if cache is None:
        return keys, values, None
    all_keys, keys = _store(cache.keys, layer, keys, cache.length)
    all_values, values = _store(cache.values, layer, values, cache.length)
    return keys, values, replace(cache, keys=all_keys, values=all_values)


def _store(stored: PyTree, layer: int | jax.Array, new: jax.Array, length: jax.Array) -> tuple[PyTree, jax.Array]:
    """All layers' slots with the new entries of one layer, and the slots of this layer."""
    if not isinstance(stored, tuple):
        stored = jax.lax.dynamic_update_slice(stored, new[None].astype(stored.dtype), (layer, 0, 0, length, 0))
        return stored, stored[layer]
    assert isinstance(layer, int), "layers with caches of their own are numbered"
    slots = jax.lax.dynamic_update_slice_in_dim(stored[layer], new.astype(stored[layer].dtype), length, axis=2)
    return (*stored[:layer], slots, *stored[layer + 1 :]), slots


def advance(cache: KVCache | None, attention_mask: Int[Array, "B T"]) -> KVCache | None:
    """The cache after a forward pass over `[B, T]` tokens, whose keys and values every layer has stored."""
    if cache is None:
        return None
    mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, attention_mask.astype(bool), cache.length, axis=1)
    return replace(cache, mask=mask, length=cache.length + attention_mask.shape[1])


def attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    visible: Visible,
    scale: float | jax.Array,
    softcap: float | None = None,
) -> Float[Array, "B T N*H"]:
    """softmax(cap(scale * Q K^T)) V with grouped key/value heads; cap(z) = c tanh(z / c), softmax in float32.

    Computed by a kernel where there is one (`attention_kernels`). At padding the result is finite and means nothing.

    Args:
        queries: of T tokens.
        keys: of S slots.
        values: of S slots.
        visible: which slots each query attends to.
        scale: of the logits.
        softcap: c; None for no bound.
    """
    batch, num_queries, num_heads, head_size = queries.shape
    queries = constrain(queries, "cache_batch", None, "cache_heads", None)
    kernel = None
    if visible.segments is not None:
        kernel = attention_kernels.choose(num_queries, head_size, queries.dtype, softcap)
    if kernel == "cudnn":
        how: dict[str, Any] = {"scale": scale, "is_causal": visible.is_causal}
        mixed = attention_kernels.cudnn(queries, keys, values, visible.mask, **how)
    elif kernel == "splash":
        mixed = _splash(queries, keys, values, visible, scale, softcap)
    else:
        mixed = _plain(queries, keys, values, visible.mask, scale, softcap)
    return constrain(mixed.reshape(batch, num_queries, num_heads * head_size), "batch", None, "heads")


def _splash(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: Visible,
    scale: float | jax.Array,
    softcap: float | None,
) -> jax.Array:
    """Splash attention `[B, T, N, H]`, whose windows are static: of a traced kind of layer, one branch for each."""

    def attend_to(window: int | None) -> Callable[..., jax.Array]:
        how: dict[str, Any] = {"softcap": softcap, "window": window, "is_causal": visible.is_causal}
        return partial(attention_kernels.splash, scale=scale, **how)

    args = (queries, keys, values, visible.segments)
    if isinstance(visible.kind, int):
        return attend_to(visible.windows[visible.kind])(*args)
    if len(set(visible.windows)) == 1:
        return attend_to(visible.windows[0])(*args)
    return jax.lax.switch(visible.kind, [attend_to(window) for window in visible.windows], *args)


def _plain(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scale: float | jax.Array,
    softcap: float | None,
) -> jax.Array:
    """Attention in plain JAX, `[B, T, N, H]`."""
    batch, num_queries, num_heads, head_size = queries.shape
    num_kv_heads, num_slots = keys.shape[1:3]
    # Queries of all heads that share keys are grouped, so that each product is one matrix product per group.
    grouped = jnp.swapaxes(queries, 1, 2).reshape(batch, num_kv_heads, -1, head_size)
    logits = jnp.einsum("BKQH,BKSH->BKQS", grouped, keys, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = logits.reshape(batch, num_kv_heads, -1, num_queries, num_slots)
    logits = jnp.where(mask[:, None, None], logits, MASKED_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    mixed = jnp.einsum("BKQS,BKSH->BKQH", weights.reshape(batch, num_kv_heads, -1, num_slots), values)
    return jnp.swapaxes(mixed.reshape(batch, num_heads, num_queries, head_size), 1, 2)
