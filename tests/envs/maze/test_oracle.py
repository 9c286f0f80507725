"""Distances against scipy's breadth-first search, shortest moves by definition, returns by stepping the environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from scipy.sparse import csgraph

from jaxrl_lm.envs.maze.environment import Maze, MazeConfig, MazeState
from jaxrl_lm.envs.maze.generators import GENERATORS
from jaxrl_lm.envs.maze.grid import UNREACHABLE, legal_moves
from jaxrl_lm.envs.maze.levels import LevelSource
from jaxrl_lm.envs.maze.oracle import distances_to_goal, optimal_moves, optimal_return, paid_return

OFFSETS = {0: lambda width: -width, 1: lambda width: width, 2: lambda width: -1, 3: lambda width: 1}
JITTED_MOVES = jax.jit(legal_moves)
JITTED_DISTANCES = jax.jit(distances_to_goal, static_argnums=2)
JITTED_OPTIMAL = jax.jit(optimal_moves, static_argnums=2)


def distances_by_scipy(moves, goals, width):
    """Breadth-first search over all levels in one graph."""
    num_levels, num_cells = moves.shape
    levels, begins = np.nonzero(moves)
    edges = [
        (level * num_cells + begin, level * num_cells + begin + OFFSETS[move](width))
        for level, begin in zip(levels, begins, strict=True)
        for move in range(4)
        if moves[level, begin] >> move & 1
    ]
    begins, ends = np.array(edges).T
    graph = sparse.coo_array((np.ones(len(edges)), (begins, ends)), shape=(moves.size,) * 2).tocsr()
    sources = np.arange(num_levels) * num_cells + goals
    lengths = csgraph.dijkstra(graph, indices=sources, unweighted=True, min_only=True)
    return np.where(np.isinf(lengths), UNREACHABLE, lengths).astype(np.uint16).reshape(moves.shape)


@pytest.fixture(scope="module", params=GENERATORS)
def bank(request):
    source = LevelSource(generator=request.param, num_levels=600)
    return jax.tree.map(np.asarray, jax.jit(source.make_bank)(jax.random.key(0)))


def test_distances_of_hundreds_of_levels_equal_scipys(bank):
    np.testing.assert_array_equal(bank.distances, distances_by_scipy(bank.moves, bank.goals, 13))


def test_optimal_moves_are_the_legal_moves_that_come_one_closer(bank):
    bits = np.asarray(JITTED_OPTIMAL(bank.distances, bank.moves, 13))
    for level in range(20):
        for cell in range(169):
            expected = 0
            for move in range(4):
                if bank.moves[level, cell] >> move & 1:
                    there = bank.distances[level, cell + OFFSETS[move](13)]
                    expected |= (int(there) == int(bank.distances[level, cell]) - 1) << move
            assert bits[level, cell] == expected
    is_on_way = (bank.distances > 0) & (bank.distances < UNREACHABLE)
    np.testing.assert_array_equal(bits > 0, is_on_way)


def test_distances_and_moves_worked_by_hand_around_a_loop():
    drawn = np.array([list("..#"), list(".#."), list("...")]) == "."
    moves = legal_moves(jnp.asarray(drawn))
    distances = distances_to_goal(moves, jnp.array(3), 3)
    np.testing.assert_array_equal(distances.reshape(3, 3), [[1, 2, UNREACHABLE], [0, UNREACHABLE, 4], [1, 2, 3]])
    # down 2, left 4, up 1
    np.testing.assert_array_equal(optimal_moves(distances, moves, 3).reshape(3, 3), [[2, 4, 0], [0, 0, 2], [1, 4, 4]])


def test_both_ways_around_a_ring_are_optimal_from_the_far_corner():
    drawn = np.array([list("..."), list(".#."), list("...")]) == "."
    moves = legal_moves(jnp.asarray(drawn))
    bits = optimal_moves(distances_to_goal(moves, jnp.array(0), 3), moves, 3)
    assert bits[8] == 0b0101  # up and left


@given(is_open=hnp.arrays(bool, (4, 5)), goal=st.integers(0, 19))
@settings(max_examples=60, deadline=None)
def test_distances_in_any_drawing_equal_a_queues_and_do_not_wrap_around_the_border(is_open, goal):
    is_open[goal // 5, goal % 5] = True
    expected, queue = {goal: 0}, [goal]
    for cell in queue:
        row, column = divmod(cell, 5)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < 4 and 0 <= c < 5 and is_open[r, c] and r * 5 + c not in expected:
                expected[r * 5 + c] = expected[cell] + 1
                queue.append(r * 5 + c)
    moves = JITTED_MOVES(is_open)
    distances = JITTED_DISTANCES(moves, jnp.array(goal), 5)
    np.testing.assert_array_equal(distances, [expected.get(cell, UNREACHABLE) for cell in range(20)])


def test_distances_are_the_same_by_vmap_by_batch_and_without_jit(bank):
    moves, goals = jnp.asarray(bank.moves[:4]), jnp.asarray(bank.goals[:4])
    by_vmap = jax.vmap(lambda moves, goal: distances_to_goal(moves, goal, 13))(moves, goals)
    alone = distances_to_goal(moves[1], goals[1], 13)
    np.testing.assert_array_equal(by_vmap, bank.distances[:4])
    np.testing.assert_array_equal(alone, bank.distances[1])


def test_distances_along_a_winding_corridor_of_101x101_count_every_cell():
    is_open = np.zeros((101, 101), bool)
    is_open[1::2, 1:-1] = True
    is_open[2:-1:4, -2] = is_open[4:-1:4, 1] = True
    moves = legal_moves(jnp.asarray(is_open))
    distances = np.asarray(JITTED_DISTANCES(moves, jnp.array(102), 101)).reshape(101, 101)
    assert distances[is_open].max() == is_open.sum() - 1
    np.testing.assert_array_equal(np.sort(distances[is_open]), np.arange(is_open.sum()))


@pytest.mark.parametrize(
    ("reward", "discount", "expected"),
    [
        ("article", 1.0, [0, 1, 0, -1, -2]),
        ("article", 0.9, [0, 1, -0.1, -1.09, -1.981]),
        ("article", 0.0, [0, 1, -1, -1, -1]),
        ("sparse", 1.0, [0, 1, 1, 1, 1]),
        ("sparse", 0.5, [0, 1, 0.5, 0.25, 0.125]),
        ("sparse", 0.0, [0, 1, 0, 0, 0]),
        ("shaped", 1.0, [0, 1.1, 1.2, 1.3, 1.4]),
        ("shaped", 0.5, [0, 1.1, 0.7, 0.55, 0.525]),
    ],
)
def test_optimal_returns_worked_by_hand(reward, discount, expected):
    returns = optimal_return(jnp.arange(5), discount=discount, reward=reward, num_cells=10)
    np.testing.assert_allclose(returns, expected, rtol=1e-6, atol=1e-7)
    paid = paid_return(jnp.arange(5), lambda rewards: rewards, discount=discount, reward=reward, num_cells=10)
    np.testing.assert_allclose(paid, expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(
    ("reward", "discount", "expected"),
    [
        ("article", 0.5, [0, 0.5, -0.25, -0.625]),
        ("sparse", 0.9, [0, 0.5, 0.45, 0.405]),
        ("shaped", 1.0, [0, 0.5, 0.6, 0.7]),  # 0.1 a move, and 1.1 for the last
    ],
)
def test_optimal_returns_of_rewards_clipped_at_a_half_worked_by_hand(reward, discount, expected):
    distances = jnp.array([0, 1, 2, 3, UNREACHABLE], jnp.uint16)
    paid = paid_return(
        distances, lambda rewards: jnp.clip(rewards, -0.5, 0.5), discount=discount, reward=reward, num_cells=10
    )
    np.testing.assert_allclose(paid, [*expected, np.nan], rtol=1e-6)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 0.999999, 1.0])
def test_optimal_return_of_the_article_equals_the_sum_of_its_rewards(discount):
    distances = np.array([1, 2, 3, 50, 1000])
    expected = [discount ** (d - 1) - sum(discount**k for k in range(d - 1)) for d in distances]
    returns = optimal_return(jnp.asarray(distances), discount=discount, reward="article", num_cells=169)
    # A return near 0 is a difference of terms near 1, each rounded to 24 bits.
    np.testing.assert_allclose(returns, expected, rtol=2e-6, atol=2e-7)


def test_optimal_return_where_the_goal_is_unreachable_is_not_a_number():
    distances = jnp.array([UNREACHABLE, 3], jnp.uint16)
    for reward in ("article", "steps", "sparse", "shaped"):
        returns = optimal_return(distances, discount=0.9, reward=reward, num_cells=169)
        np.testing.assert_array_equal(np.isnan(returns), [True, False])


def test_optimal_return_refuses_an_unknown_reward():
    with pytest.raises(ValueError, match="reward='dense'"):
        optimal_return.__wrapped__(jnp.arange(3), discount=0.9, reward="dense", num_cells=9)


@pytest.mark.parametrize("reward", ["article", "steps", "sparse", "shaped"])
@pytest.mark.parametrize("discount", [0.0, 0.95, 1.0])
def test_optimal_return_equals_what_the_environment_pays_along_optimal_moves(reward, discount):
    source = LevelSource(generator="braided", height=9, width=11, num_levels=64)
    env = Maze(MazeConfig(reward=reward, discount=discount), source)
    params = jax.jit(env.new_params)(jax.random.key(0))
    bits = optimal_moves(params.bank.distances, params.bank.moves, source.width)
    levels = jnp.arange(64)
    states = MazeState(time=jnp.zeros(64, jnp.int32), level=levels, position=params.bank.starts)

    def step(carry, _):
        states, returns, scale = carry
        here = bits[levels, states.position].astype(jnp.int32)
        lowest = jnp.log2(here & -here).astype(jnp.int32)
        moved, rewards = jax.vmap(env.transition, (0, 0, None))(states, lowest, params)
        is_over = jax.vmap(env.is_terminated, (0, None))(states, params)
        states = jax.tree.map(lambda new, old: jnp.where(is_over, old, new), moved, states)
        return (states, returns + jnp.where(is_over, 0.0, scale * rewards), scale * discount), None

    longest = int(params.bank.distances[levels, params.bank.starts].max())
    (states, returns, _), _ = jax.lax.scan(step, (states, jnp.zeros(64), jnp.ones(())), length=longest)
    starts = params.bank.distances[levels, params.bank.starts]
    np.testing.assert_array_equal(states.position, params.bank.goals)
    np.testing.assert_array_equal(states.time, starts)
    expected = optimal_return(starts, discount=discount, reward=reward, num_cells=env.num_cells)
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-5)
