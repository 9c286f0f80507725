"""Operations of the programs that a run calls: counted once per program, added at every call.

A program is counted in the jaxpr of its first call, which JAX keeps, so nothing is traced twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxrl_lm.core.flops import count_flops


@dataclass
class Work:
    """What was done inside `counting`.

    Attributes:
        flops: operations of products, over all devices.
    """

    flops: float = 0.0


_counting: ContextVar[Work | None] = ContextVar("work", default=None)


@contextmanager
def counting() -> Iterator[Work]:
    """Count the work of the `counted` programs that are called inside."""
    work = Work()
    token = _counting.set(work)
    try:
        yield work
    finally:
        _counting.reset(token)


def is_counting() -> bool:
    """Whether work is being counted, for what takes time to count."""
    return _counting.get() is not None


def add_flops(flops: float) -> None:
    """Add operations that no `counted` program makes, where work is being counted."""
    work = _counting.get()
    if work is not None:
        work.flops += flops


def counted(program: Any) -> Callable[..., Any]:
    """A jitted function whose operations are counted.

    Args:
        program: as `jax.jit` returns it; called with positional arguments. Its while loops count once.
    """
    known: dict[Any, float] = {}

    def call(*args: Any) -> Any:
        if is_counting():
            shapes = _shapes(args)
            if shapes not in known:
                known[shapes] = count_flops(program.trace(*args).jaxpr)
            add_flops(known[shapes])
        return program(*args)

    return call


def _shapes(args: Any) -> Any:
    """What tells the traces of a program apart: structure, shapes and dtypes; static arguments themselves."""
    leaves, structure = jax.tree.flatten(args)
    return structure, tuple(
        (leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array | np.ndarray) else leaf for leaf in leaves
    )
