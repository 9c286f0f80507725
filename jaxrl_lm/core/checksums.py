"""Whether what a run reads is still what it was."""

import zlib
from typing import Any

import jax
import numpy as np


def checksum_arrays(tree: Any) -> int:
    """CRC32 of the bytes of a tree's leaves, in their order; names, shapes and types do not count."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        found = zlib.crc32(np.asarray(leaf).tobytes(), found)
    return found


def checksum_value(value: Any) -> int:
    """CRC32 of a plain value by its text."""
    return zlib.crc32(repr(value).encode())
