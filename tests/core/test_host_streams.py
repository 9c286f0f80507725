"""Random streams on the host: each purpose has its own."""

import itertools

import numpy as np

from jaxrl_lm.core.host_streams import Stream, host_generator


def test_no_two_purposes_seeds_or_counters_share_numbers():
    arguments = [
        (stream, seed, *counters) for stream in Stream for seed in (0, 1) for counters in ((), (0,), (1,), (0, 0))
    ]
    draws = [host_generator(*each).random(8) for each in arguments]
    for one, other in itertools.combinations(draws, 2):
        assert not np.intersect1d(one, other).size


def test_the_same_arguments_draw_the_same_numbers():
    one, other = (host_generator(Stream.PACKING, 7, 3).random(8) for _ in range(2))
    np.testing.assert_array_equal(one, other)
