"""Random number streams on the host, one per purpose, all from one seed."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purposes of random numbers. Never renumber them: results depend on the values."""

    PROMPT_ORDER = 1
    HELD_OUT = 2
    PACKING = 3
    ANNOTATOR = 4


def host_generator(stream: Stream, seed: int, *counters: int) -> np.random.Generator:
    """A generator determined by its arguments alone.

    Plain `default_rng(seed)` would draw the same numbers for every purpose, and the same as `default_rng([seed, 0])`,
    because NumPy pads entropy with zeros.

    Args:
        stream: the purpose; streams are independent under one seed.
        seed: 0 or more.
        counters: further integers, such as an epoch; each 0 or more.

    Reference: NumPy's `SeedSequence`, after O'Neill, 2015, Developing a seed_seq Alternative.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, *counters)))
