"""Random orders: permutations, all as likely, another for every key."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from jaxrl_lm.core.shuffling import random_order


@pytest.mark.parametrize("size", [1, 2, 13, 64, 96, 257, 1000, 4096])
def test_every_index_stands_there_once(size: int):
    np.testing.assert_array_equal(np.sort(random_order(jax.random.key(size), size)), np.arange(size))


def test_all_orders_of_four_are_as_likely():
    orders = np.asarray(jax.vmap(lambda key: random_order(key, 4))(jax.random.split(jax.random.key(0), 24_000)))
    found = dict.fromkeys(itertools.permutations(range(4)), 0)
    for order in orders:
        found[tuple(order)] += 1
    assert stats.chisquare(list(found.values())).pvalue > 1e-3


def test_in_a_random_order_every_number_and_every_pair_of_neighbours_is_as_likely_at_every_place():
    num_keys, size = 20_000, 64
    orders = np.asarray(
        jax.jit(jax.vmap(lambda key: random_order(key, size)))(jax.random.split(jax.random.key(0), num_keys))
    )
    counts = np.stack([np.bincount(orders[:, place], minlength=size) for place in range(size)])
    differences = np.bincount((orders[:, 1:] - orders[:, :-1]).reshape(-1) % size, minlength=size)[1:]
    # Chi-square over its degrees of freedom; for 4,096 cells its standard deviation is 0.022.
    assert np.mean(np.square(counts - num_keys / size)) / (num_keys / size) < 1.1
    expected = num_keys * (size - 1) / (size - 1)
    assert np.abs(differences / expected - 1).max() < 0.05


def test_keys_give_different_orders():
    first, second = (random_order(jax.random.key(seed), 1000) for seed in (0, 1))
    assert np.mean(np.asarray(first) == np.asarray(second)) < 0.02
