"""Which parameters are trained: all, or of a model with adapters only these and its heads.

A part of a tree has None in place of the leaves that it lacks. JAX takes None for a subtree without leaves, so an
optimizer keeps no moments for them, and norms do not count them.
"""

from typing import Any

import jax

from jaxrl_lm.types import PyTree

ADAPTER = ("lora_a", "lora_b")
HEADS = ("value_head", "score", "classifier", "pooler")
"""Names of heads; the pooler of an encoder is one, which pretraining may not have left."""
_BASE = ("backbone", "lm_head")


def split(tree: PyTree) -> tuple[PyTree, PyTree]:
    """The trained and the frozen leaves of parameters, or of a learner's state.

    Returns:
        Two trees. Without adapters in it, the first is the tree itself and the second has no leaves.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    has_adapters = any(not _ADAPTER_NAMES.isdisjoint(_names(path)) for path, _ in leaves)
    is_kept = [not (has_adapters and is_frozen(_names(path))) for path, _ in leaves]
    structure = jax.tree.structure(tree)
    return tuple(  # pyright: ignore[reportReturnType]
        jax.tree.unflatten(
            structure, [leaf if kept == side else None for (_, leaf), kept in zip(leaves, is_kept, strict=True)]
        )
        for side in (True, False)
    )


def trained(tree: PyTree) -> PyTree:
    """The trained leaves of parameters."""
    return split(tree)[0]


def join(trained: PyTree, frozen: PyTree) -> PyTree:
    """The whole tree; the inverse of `split`."""
    return jax.tree.map(
        lambda one, other: other if one is None else one, trained, frozen, is_leaf=lambda leaf: leaf is None
    )


def without_adapters(params: PyTree) -> PyTree:
    """The parameters of the base: the same arrays, without the adapters'."""
    if not isinstance(params, dict):
        return params
    return {name: without_adapters(part) for name, part in params.items() if name not in ADAPTER}


def is_frozen(names: tuple[str, ...]) -> bool:
    """Whether a leaf with this path belongs to the base of a model with adapters."""
    return not _BASE_NAMES.isdisjoint(names) and _TRAINED_NAMES.isdisjoint(names)


_ADAPTER_NAMES, _BASE_NAMES, _TRAINED_NAMES = (frozenset(names) for names in (ADAPTER, _BASE, (*ADAPTER, *HEADS)))


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
