"""Random orders: permutations, all as likely, another for every key."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_lm.core.shuffling import random_order


@pytest.mark.parametrize("size", [1, 2, 3, 16, 255, 256, 257, 5000])
def test_every_index_stands_there_once(size: int):
    np.testing.assert_array_equal(np.sort(random_order(jax.random.key(size), size)), np.arange(size))


def test_all_orders_of_four_are_as_likely():
    orders = np.asarray(jax.vmap(lambda key: random_order(key, 4))(jax.random.split(jax.random.key(0), 24_000)))
    found = dict.fromkeys(itertools.permutations(range(4)), 0)
    for order in orders:
        found[tuple(order)] += 1
    assert stats.chisquare(list(found.values())).pvalue > 1e-3


def test_each_index_comes_first_as_often_where_bits_are_few():
    # 2^16 indices leave 16 random bits a pass: with one pass, ties would keep the order of the indices.
    size = 2**16
    orders = jax.vmap(lambda key: random_order(key, size))(jax.random.split(jax.random.key(1), 20))
    rises = np.mean(np.diff(np.asarray(orders), axis=-1) > 0)
    # Each of 20 * 65,535 neighbours rises with probability 1/2; neighbouring pairs are correlated, hence 1/12.
    assert abs(rises - 0.5) < 4 * np.sqrt(1 / 12 / (20 * size))


def test_keys_give_different_orders():
    first, second = (random_order(jax.random.key(seed), 1000) for seed in (0, 1))
    assert np.mean(np.asarray(first) == np.asarray(second)) < 0.02


def test_too_many_are_refused():
    with pytest.raises(ValueError, match="2\\^24"):
        jax.eval_shape(lambda key: random_order(key, 2**24 + 1), jax.random.key(0))
    assert jax.eval_shape(lambda key: random_order(key, 2**20), jax.random.key(0)).dtype == jnp.int32
