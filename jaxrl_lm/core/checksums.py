"""Checksums to detect changed inputs of a run."""

import zlib
from typing import Any

import jax
import numpy as np


def checksum_arrays(tree: Any) -> int:
    """CRC32 of the bytes of a tree's leaves, in order; names, shapes and types are ignored."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        found = zlib.crc32(np.asarray(leaf).tobytes(), found)
    return found


def checksum_value(value: Any) -> int:
    """CRC32 of a plain value's text."""
    return zlib.crc32(repr(value).encode())
