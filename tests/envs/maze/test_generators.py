"""Mazes against scipy's graph algorithms: connected, perfect, uniform where that is promised, and drawn by the key."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.sparse import csgraph

from jaxrl_lm.envs.maze import generators
from jaxrl_lm.envs.maze.generators import GENERATORS

TREES = ("backtracker", "wilson", "kruskal")
ROOMED = (*TREES, "braided")
SOME_WALLS = jax.jit(jax.vmap(generators.walls_at_share, (0, None, None, None)), static_argnums=(1, 2))
ODD_SIZES = st.sampled_from([5, 7])  # each pair is compiled once


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _levels(name, key, num_levels, height, width):
    return jax.vmap(lambda key: GENERATORS[name](key, height, width))(jax.random.split(key, num_levels))


def levels(name, num_levels, height, width, seed=0):
    return np.asarray(_levels(name, jax.random.key(seed), num_levels, height, width))


def edges_of(is_open):
    """Pairs of open neighbours over all levels, each cell numbered within the whole batch."""
    cells = np.arange(is_open.size).reshape(is_open.shape)
    down = is_open[:, :-1] & is_open[:, 1:]
    right = is_open[:, :, :-1] & is_open[:, :, 1:]
    begins = np.concatenate([cells[:, :-1][down], cells[:, :, :-1][right]])
    ends = np.concatenate([cells[:, 1:][down], cells[:, :, 1:][right]])
    return begins, ends


def num_components(is_open):
    begins, ends = edges_of(is_open)
    graph = sparse.coo_array((np.ones(len(begins)), (begins, ends)), shape=(is_open.size,) * 2)
    return csgraph.connected_components(graph, directed=False)[0] - int((~is_open).sum())


def num_neighbours(is_open):
    begins, ends = edges_of(is_open)
    counts = np.bincount(np.concatenate([begins, ends]), minlength=is_open.size)
    return counts.reshape(is_open.shape)


@pytest.mark.parametrize("name", ROOMED)
@pytest.mark.parametrize(("height", "width"), [(13, 13), (5, 9)])
def test_thousands_of_roomed_mazes_are_each_connected_within_a_wall_and_open_at_every_room(name, height, width):
    is_open = levels(name, 2000, height, width)
    assert is_open[:, 1::2, 1::2].all()
    assert not is_open[:, ::2, ::2].any()
    assert not is_open[:, [0, -1]].any()
    assert not is_open[:, :, [0, -1]].any()
    assert num_components(is_open) == 2000


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(("height", "width"), [(13, 13), (5, 9)])
def test_thousands_of_perfect_mazes_are_each_a_spanning_tree(name, height, width):
    is_open = levels(name, 2000, height, width)
    begins, _ = edges_of(is_open)
    edges = np.bincount(begins // (height * width), minlength=2000)
    np.testing.assert_array_equal(edges, is_open.sum((1, 2)) - 1)
    assert num_components(is_open) == 2000


@pytest.mark.parametrize("name", ROOMED)
def test_mazes_of_101x101_are_connected(name):
    is_open = levels(name, 2, 101, 101)
    assert num_components(is_open) == 2
    assert (is_open.sum((1, 2)) == 2 * 50 * 50 - 1).all() == (name != "braided")


@given(height=ODD_SIZES, width=ODD_SIZES, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize("name", TREES)
def test_any_odd_size_gives_a_spanning_tree(name, height, width, seed):
    is_open = levels(name, 3, height, width, seed)
    assert is_open.shape == (3, height, width)
    assert len(edges_of(is_open)[0]) == is_open.sum() - 3
    assert num_components(is_open) == 3


def test_braided_mazes_have_loops_and_no_dead_end():
    is_open = levels("braided", 2000, 13, 13)
    assert (num_neighbours(is_open)[is_open] >= 2).all()
    begins, _ = edges_of(is_open)
    edges = np.bincount(begins // 169, minlength=2000)
    assert (edges >= is_open.sum((1, 2))).all()


def test_braided_mazes_open_no_more_walls_than_the_backtracker_has_dead_ends():
    key = jax.random.key(3)
    make = jax.jit(lambda key: (generators.braided(key, 9, 7), generators.backtracker(jax.random.split(key)[0], 9, 7)))
    braided, tree = (np.asarray(maze) for maze in make(key))
    dead_ends = (num_neighbours(tree[None])[0] == 1) & tree
    assert (braided >= tree).all()
    assert 1 <= braided.sum() - tree.sum() <= dead_ends.sum()


def test_backtracker_makes_the_longest_corridors_and_kruskal_the_most_dead_ends():
    dead_ends = {}
    for name in TREES:
        is_open = levels(name, 2000, 13, 13)
        dead_ends[name] = ((num_neighbours(is_open) == 1) & is_open).sum() / 2000
    assert dead_ends["backtracker"] < 0.6 * dead_ends["wilson"] < 0.6 * dead_ends["kruskal"]


def spanning_trees_of_3x3_rooms():
    """Every spanning tree of 3x3 rooms as the flat grid of its maze, by trying all choices of 8 of the 12 walls."""
    walls = [(r, k) for r in range(1, 6) for k in range(1, 6) if (r + k) % 2]
    mazes = []
    for chosen in itertools.combinations(walls, 8):
        is_open = np.zeros((1, 7, 7), bool)
        is_open[0, 1::2, 1::2] = True
        rows, columns = np.array(chosen).T
        is_open[0, rows, columns] = True
        if num_components(is_open) == 1:
            mazes.append(is_open.tobytes())
    return mazes


def test_wilson_draws_each_of_the_192_mazes_of_3x3_rooms_equally_often():
    trees = spanning_trees_of_3x3_rooms()
    assert len(trees) == 192
    place = {maze: index for index, maze in enumerate(trees)}
    drawn = levels("wilson", 40_000, 7, 7)
    counts = np.bincount([place[maze.tobytes()] for maze in drawn], minlength=192)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_chi_square_tells_kruskal_from_a_uniform_choice():
    place = {maze: index for index, maze in enumerate(spanning_trees_of_3x3_rooms())}
    drawn = levels("kruskal", 40_000, 7, 7)
    counts = np.bincount([place[maze.tobytes()] for maze in drawn], minlength=192)
    assert stats.chisquare(counts).pvalue < 1e-4


def test_kruskal_draws_mazes_of_3x3_rooms_as_often_as_kruskals_own_loop():
    trees = spanning_trees_of_3x3_rooms()
    place = {maze: index for index, maze in enumerate(trees)}
    ours = np.bincount([place[maze.tobytes()] for maze in levels("kruskal", 40_000, 7, 7)[:20_000]], minlength=192)
    walls = [(r, k) for r in range(1, 6) for k in range(1, 6) if (r + k) % 2]
    rng = np.random.default_rng(0)
    theirs = np.zeros(192, int)
    for _ in range(20_000):
        parent = list(range(49))

        def find(cell, parent=parent):
            while parent[cell] != cell:
                cell = parent[cell]
            return cell

        is_open = np.zeros((1, 7, 7), bool)
        is_open[0, 1::2, 1::2] = True
        for wall in rng.permutation(12):
            row, column = walls[wall]
            down, right = (1, 0) if column % 2 else (0, 1)
            one, other = find((row - down) * 7 + column - right), find((row + down) * 7 + column + right)
            if one != other:
                parent[one] = other
                is_open[0, row, column] = True
        theirs[place[is_open.tobytes()]] += 1
    assert stats.chi2_contingency(np.stack([ours, theirs])).pvalue > 1e-4


def test_backtracker_draws_mazes_of_2x2_rooms_equally_often():
    """By symmetry: it walks round the square, so the closed wall is the one behind the random start or its mirror."""
    drawn = levels("backtracker", 20_000, 5, 5)
    _, counts = np.unique(drawn.reshape(20_000, -1), axis=0, return_counts=True)
    assert len(counts) == 4
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6])
def test_walls_at_share_blocks_that_share_of_the_cells(share):
    keys = jax.random.split(jax.random.key(0), 1000)
    is_open = np.asarray(SOME_WALLS(keys, 13, 13, share))
    # Two cells of 169 are open whatever the share; six standard deviations of 167,000 draws.
    expected, spread = share * 167 / 169, 6 * np.sqrt(share * (1 - share) / 167_000)
    assert abs((~is_open).mean() - expected) <= spread


def test_walls_at_share_one_leave_one_pair_of_neighbours_open():
    keys = jax.random.split(jax.random.key(1), 500)
    is_open = np.asarray(SOME_WALLS(keys, 5, 7, 1.0))
    assert (is_open.sum((1, 2)) == 2).all()
    assert len(edges_of(is_open)[0]) == 500
    assert len(np.unique(is_open.reshape(500, -1), axis=0)) == 5 * 6


def test_random_walls_draw_their_share_from_none_to_sixty_blocks_on_13x13():
    walls = (~levels("random_walls", 2000, 13, 13)).sum((1, 2))
    assert walls.min() <= 1
    assert 55 <= walls.max() <= 85
    assert abs(walls.mean() - 30 * 167 / 169) < 6 * 18.5 / np.sqrt(2000)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_key_gives_the_same_level_and_other_keys_other_levels(name):
    one, again, other = (levels(name, 2000, 13, 13, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    both = np.concatenate([one, other]).reshape(4000, -1)
    # A share of walls near 0 leaves about one in sixty random_walls empty, hence alike.
    assert len(np.unique(both, axis=0)) >= (4000 if name != "random_walls" else 3850)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_level_is_the_same_without_jit_and_whatever_its_batch(name):
    keys = jax.random.split(jax.random.key(0), 5)
    batch = levels(name, 5, 7, 5)
    alone = GENERATORS[name](keys[3], 7, 5)
    assert alone.dtype == jnp.bool_
    np.testing.assert_array_equal(batch[3], alone)
