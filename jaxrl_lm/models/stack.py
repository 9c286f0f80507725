"""The blocks of a decoder: a module per layer, or one module that is scanned over stacked parameters.

A block maps `((x, cache), contexts, layer)` to `((x, cache), None)`. Unrolled, `layer` is a Python number. Scanned, it
is traced: all layers have one program, and compiling takes as long as for one layer. Unrolled blocks run faster on a
CPU: a training step of SmolLM2 by about a tenth, because gradients need not be stacked.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import register_dataclass

from jaxrl_lm.distributed.sharding import constrain
from jaxrl_lm.models.attention import KVCache
from jaxrl_lm.models.config import ModelConfig
from jaxrl_lm.types import PyTree

Remat = Literal["none", "dots", "full"]
"""What a block keeps for the backward pass: all activations, the outputs of its projections, or only its input."""

Carry = tuple[jax.Array, KVCache | None]
"""The residual stream `[B, T, D]` and the cache, which every block passes on."""

RESIDUAL_AXES = ("batch", None, None)
_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerContexts:
    """What the blocks read besides the residual stream, such as masks; layers of one kind share it.

    Attributes:
        contexts: a pytree for each kind; all have the same shapes.
        kinds: number of each layer's kind.
    """

    contexts: tuple[PyTree, ...]
    kinds: tuple[int, ...] = field(metadata={"static": True})

    def of(self, layer: int | jax.Array) -> PyTree:
        """The context of a layer."""
        if isinstance(layer, int):
            return self.contexts[self.kinds[layer]]
        if len(self.contexts) == 1:
            return self.contexts[0]
        kind = jnp.asarray(self.kinds)[layer]
        return jax.tree.map(lambda *each: jnp.stack(each)[kind], *self.contexts)


def make_layers(block: Any, config: ModelConfig, *, remat: Remat, is_scanned: bool, **kinds: Any) -> Any:
    """The blocks, for `setup` of a backbone: a list of modules, or one scanned module.

    Args:
        block: class of a block.
        config: its configuration.
        remat: what the backward pass recomputes.
        is_scanned: whether parameters are stacked, `[L, ...]`.
        kinds: dtypes.
    """
    static = () if is_scanned else (3,)  # the layer's number
    block = rematerialized(block, remat, prevent_cse=not is_scanned, static_argnums=static)
    if not is_scanned:
        return [block(config, **kinds) for _ in range(config.num_layers)]
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
        length=config.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config, **kinds)


def rematerialized(block: Any, remat: Remat, **options: Any) -> Any:
    """The class of a block whose backward pass recomputes what `remat` does not keep; `options` are of `nn.remat`."""
    return block if remat == "none" else nn.remat(block, policy=_POLICIES[remat], **options)


def run_layers(
    layers: Any, x: jax.Array, contexts: LayerContexts, cache: KVCache | None
) -> tuple[jax.Array, KVCache | None]:
    """Hidden states `[B, T, D]` after all blocks, and the cache with their keys and values."""
    x = constrain(x, *RESIDUAL_AXES)
    if isinstance(layers, nn.Module):
        (x, cache), _ = layers((x, cache), contexts, jnp.arange(len(contexts.kinds)))
        return x, cache
    for layer, block in enumerate(layers):
        (x, cache), _ = block((x, cache), contexts, layer)
    return x, cache


def stack_layers(params: PyTree, stem: str, stack: Callable[[Any], Any] = jnp.stack) -> PyTree:
    """Parameters of a scanned model from those of an unrolled one: `layers_0`, `layers_1`, ... become `layers`.

    Args:
        params: `{"backbone": {...}, ...}`.
        stem: name of the blocks, `Family.layers`.
        stack: puts leaves of the layers together; `Stack` if they are in a file.

    Returns:
        The same with leaves `[L, ...]` in place of those of the layers.
    """
    backbone = dict(params["backbone"])
    num_layers = sum(name.startswith(f"{stem}_") for name in backbone)
    layers = [backbone.pop(f"{stem}_{number}") for number in range(num_layers)]
    backbone[stem] = jax.tree.map(lambda *each: stack(each), *layers)
    return {**params, "backbone": backbone}


def unstack_layers(params: PyTree, stem: str) -> PyTree:
    """Parameters of an unrolled model from those of a scanned one; the inverse of `stack_layers`."""
    backbone = dict(params["backbone"])
    stacked = backbone.pop(stem)
    for number in range(jax.tree.leaves(stacked)[0].shape[0]):
        backbone[f"{stem}_{number}"] = jax.tree.map(lambda leaf, number=number: leaf[number], stacked)
    return {**params, "backbone": backbone}
