"""Tensors that stay in their file until a part of them is read.

A tensor of a safetensors file is a read-only NumPy array in the file's memory map: its transposes and slices are views,
and what is never looked at is never read. `Stack` does the same for tensors that a file has apart.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Stack:
    """Tensors of one shape as one `[N, ...]`, which are only put together when they are read.

    Attributes:
        parts: N tensors.
        shape: of the whole.
        dtype: that all parts fit into.
    """

    def __init__(self, parts: Sequence["np.ndarray | Stack"]) -> None:
        self.parts = tuple(parts)
        self.shape: tuple[int, ...] = (len(self.parts), *self.parts[0].shape)
        self.dtype = np.result_type(*(part.dtype for part in self.parts))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> "Stack":
        """A view, as of an array; only slices, and at least one part."""
        of_parts, *rest = index or (slice(None),)
        return Stack([part[tuple(rest)] for part in self.parts[of_parts]])

    def swapaxes(self, first: int, second: int) -> "Stack":
        """A view with two axes of the parts swapped, which are counted from the last, -1."""
        return Stack([part.swapaxes(first, second) for part in self.parts])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole in memory."""
        if copy is False:
            raise ValueError("tensors can only be stacked in a copy")
        whole = np.empty(self.shape, dtype or self.dtype)
        _fill(whole, self)
        return whole


Stored = np.ndarray | Stack
"""A tensor of which parts can be read."""


def read(tensor: Stored, index: tuple[slice, ...] = (), dtype: Any = None) -> np.ndarray:
    """A part of a tensor as a new array in memory.

    Args:
        tensor: the tensor.
        index: a slice for each of the first axes.
        dtype: dtype of the result; None for the tensor's.
    """
    return np.array(tensor[index], dtype, order="C")


def _fill(whole: np.ndarray, tensor: Stored) -> None:
    if isinstance(tensor, Stack):
        for number, part in enumerate(tensor.parts):
            _fill(whole[number, ...], part)
    else:
        whole[...] = tensor
