"""Streams of random numbers on the host, one for each purpose, so that one seed may stand behind all of them."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What numbers are drawn for. A number once given stays, for results depend on it."""

    PROMPT_ORDER = 1
    HELD_OUT = 2
    PACKING = 3
    ANNOTATOR = 4


def host_generator(stream: Stream, seed: int, *counters: int) -> np.random.Generator:
    """A generator that is a function of its arguments alone.

    Plain `default_rng(seed)` would draw the same numbers for every purpose that is given this seed, and the same as
    `default_rng([seed, 0])`: NumPy pads entropy with zeros.

    Args:
        stream: the purpose; two purposes share no numbers under one seed.
        seed: 0 or more.
        counters: what else the draw depends on, such as an epoch; 0 or more each.

    Reference: NumPy's `SeedSequence`, after O'Neill, 2015, Developing a seed_seq Alternative.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, *counters)))
