"""Banks of levels: what is drawn, what layouts hold, and what is refused with which words."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.envs.maze import levels
from jaxrl_lm.envs.maze.generators import GENERATORS
from jaxrl_lm.envs.maze.grid import UNREACHABLE
from jaxrl_lm.envs.maze.layouts import LAYOUTS, layout_rows
from jaxrl_lm.envs.maze.levels import LevelSource, source_from_options
from jaxrl_lm.envs.maze.oracle import optimal_return
from jaxrl_lm.errors import InputError


@functools.cache
def _jitted(source):
    return jax.jit(source.make_bank)


def bank_of(source, seed=0):
    return jax.tree.map(np.asarray, _jitted(source)(jax.random.key(seed)))


@pytest.fixture(scope="module", params=GENERATORS)
def generated(request):
    source = LevelSource(generator=request.param, height=9, width=7, num_levels=3000)
    return source, bank_of(source)


def test_a_bank_has_its_shapes_and_types(generated):
    _, bank = generated
    assert (bank.moves.shape, bank.moves.dtype) == ((3000, 63), np.uint8)
    assert (bank.distances.shape, bank.distances.dtype) == ((3000, 63), np.uint16)
    assert (bank.starts.shape, bank.starts.dtype) == ((3000,), np.int32)
    assert (bank.goals.shape, bank.goals.dtype) == ((3000,), np.int32)
    assert bank.num_levels == 3000


def test_every_start_is_an_open_cell_with_a_way_to_another_that_is_the_goal(generated):
    _, bank = generated
    rows = np.arange(3000)
    assert (bank.starts != bank.goals).all()
    assert (bank.moves[rows, bank.starts] > 0).all()
    assert (bank.distances[rows, bank.goals] == 0).all()
    assert (bank.distances[rows, bank.starts] < UNREACHABLE).all()


def test_goals_and_starts_fall_on_every_open_cell(generated):
    source, bank = generated
    if source.generator == "random_walls":
        expected = np.arange(63)
    else:
        expected = np.flatnonzero((bank.moves > 0).any(0))
    np.testing.assert_array_equal(np.unique(bank.goals), expected)
    np.testing.assert_array_equal(np.unique(bank.starts), expected)


def test_goal_and_start_of_one_drawing_are_uniform():
    choices = np.array([False, True, True, False, True, False])
    keys = jax.random.split(jax.random.key(0), 30_000)
    cells = jax.jit(jax.vmap(levels._random_cell, (0, None)))(keys, choices)
    counts = np.bincount(np.asarray(cells), minlength=6)
    np.testing.assert_array_equal(counts > 0, choices)
    assert abs(counts[choices] - 10_000).max() < 6 * np.sqrt(30_000 * 2 / 9)


def test_the_same_key_gives_the_same_bank_and_another_key_another(generated):
    source, bank = generated
    again, other = bank_of(source), bank_of(source, seed=1)
    for name in ("moves", "starts", "goals", "distances"):
        np.testing.assert_array_equal(getattr(bank, name), getattr(again, name))
        assert (getattr(bank, name) != getattr(other, name)).any()


def test_a_bank_is_the_same_without_jit():
    source = LevelSource(generator="random_walls", height=5, width=5, num_levels=3)
    bank = source.make_bank(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, bank, bank_of(source))


def test_sources_are_hashable_and_equal_by_value():
    assert source_from_options() == LevelSource() == source_from_options(size=13, generator="backtracker", seed=0)
    assert hash(source_from_options(layout="umaze")) == hash(LevelSource(layout="umaze", height=5, width=5))
    assert source_from_options(seed=1) != source_from_options()


@pytest.mark.parametrize("given", [{"size": 5}, {"generator": "wilson"}, {"num_levels": 4}])
def test_what_a_layout_has_itself_is_not_given_beside_it(given):
    with pytest.raises(InputError, match=f"{next(iter(given))}=.* does not go with a layout"):
        source_from_options(layout="umaze", **given)


def test_the_double_t_has_25_starts_whose_mean_best_return_is_minus_6_84():
    source = source_from_options(layout="double-t")
    bank = bank_of(source)
    assert (source.height, source.width, source.num_levels, bank.num_levels) == (10, 13, 25, 25)
    assert (bank.goals == 8 * 13 + 6).all()
    distances = bank.distances[np.arange(25), bank.starts]
    # -1 a step and 0 for the step that reaches the goal
    np.testing.assert_allclose(np.mean(1.0 - distances), -6.84)
    article = optimal_return(jnp.asarray(distances), discount=1.0, reward="article", num_cells=130)
    np.testing.assert_allclose(np.mean(article - 1), -6.84, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "height", "width", "num_starts", "longest"),
    [
        ("umaze", 5, 5, 6, 6),
        ("medium", 8, 8, 25, 10),
        ("large", 9, 12, 45, 18),
        ("sixteen-rooms", 13, 13, 1, 20),
        ("labyrinth", 13, 13, 1, 96),
        ("standard-maze", 13, 13, 1, 40),
    ],
)
def test_layouts_have_their_size_their_starts_and_their_longest_shortest_way(name, height, width, num_starts, longest):
    bank = bank_of(source_from_options(layout=name))
    assert bank.moves.shape == (num_starts, height * width)
    assert bank.distances[np.arange(num_starts), bank.starts].max() == longest


def test_a_layout_gives_the_same_bank_for_every_key_and_one_level_a_start():
    source = source_from_options(layout="S.G\n##S")
    bank = bank_of(source)
    np.testing.assert_array_equal(bank.starts, [0, 5])
    np.testing.assert_array_equal(bank.goals, [2, 2])
    # right 8, left 4, down 2, up 1
    np.testing.assert_array_equal(bank.moves, [[8, 12, 6, 0, 0, 1]] * 2)
    np.testing.assert_array_equal(bank.distances, [[2, 1, 0, UNREACHABLE, UNREACHABLE, 1]] * 2)
    jax.tree.map(np.testing.assert_array_equal, bank, bank_of(source, seed=7))


def test_a_layout_may_be_indented_and_may_be_one_row():
    assert layout_rows("\n    S.#\n    .G#\n  ") == ["S.#", ".G#"]
    assert source_from_options(layout="S..G").width == 4


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_drawing_of_a_layout_means_the_same_as_its_name(name):
    jax.tree.map(
        np.testing.assert_array_equal,
        bank_of(source_from_options(layout=LAYOUTS[name])),
        bank_of(source_from_options(layout=name)),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 12}, r"size=12 must be odd and at least 5, such as 13"),
        ({"size": 3}, r"size=3 must be odd and at least 5, such as 5"),
        ({"size": -1}, r"size=-1 must be odd"),
        ({"size": 257}, r"height=257 times width=257 is 66049 cells.*255x255"),
        ({"generator": "wilsn"}, r"generator='wilsn' is not a generator; did you mean: wilson"),
        ({"generator": "xyz"}, r"there are: backtracker, wilson, kruskal, random_walls, braided"),
        ({"num_levels": 0}, r"num_levels=0 must be at least 1"),
        ({"layout": "umase"}, r"layout='umase' is not a layout; did you mean: umaze"),
        ({"layout": "xyz"}, r"there are: umaze, medium"),
        ({"layout": "S.G\n.."}, r"row 2, '\.\.', has 2 cells and row 1 has 3"),
        ({"layout": "S.G\n.x."}, r"row 2, '\.x\.', has 'x'; draw with"),
        ({"layout": "..G\n..."}, r"no start; mark .* with S"),
        ({"layout": "S..\n..."}, r"has 0 goals; mark exactly one cell with G"),
        ({"layout": "S.G\n..G"}, r"has 2 goals; mark exactly one cell with G"),
        ({"layout": "S.G\n###\n.S."}, r"no path to the goal.*row 3, column 2.*open a wall"),
        ({"layout": ""}, r"no start"),
    ],
)
def test_bad_options_are_refused_with_field_value_and_remedy(options, message):
    with pytest.raises(InputError, match=message):
        source_from_options(**options)


@pytest.mark.parametrize("field", ["height", "width"])
def test_a_source_refuses_an_even_side_by_its_own_name(field):
    with pytest.raises(InputError, match=f"{field}=8 must be odd"):
        LevelSource(**{field: 8})


@given(layout=st.text("#.SG\n", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_drawing_is_either_a_playable_layout_or_refused(layout):
    try:
        rows = layout_rows(layout)
    except InputError:
        return
    assert {len(row) for row in rows} == {len(rows[0])}
    text = "".join(rows)
    assert text.count("G") == 1
    assert text.count("S") >= 1


def test_a_bank_larger_than_memory_is_refused_with_its_size_and_what_would_fit(monkeypatch):
    monkeypatch.setattr(levels, "available_bytes", lambda: 10**9)
    source = LevelSource(num_levels=10**6)
    with pytest.raises(InputError) as error:
        source.make_bank(jax.random.key(0))
    message = str(error.value)
    assert "num_levels=1000000 of 13x13 cells take 0.507 GB" in message
    most = int(re.findall(r"at most (\d+) levels", message)[0])
    assert LevelSource(num_levels=most)._check_memory() is None
    with pytest.raises(InputError):
        LevelSource(num_levels=most + 1)._check_memory()


def test_a_bank_beyond_any_memory_is_refused_before_anything_is_allocated():
    with pytest.raises(InputError, match="GB"):
        jax.jit(LevelSource(num_levels=10**12).make_bank)(jax.random.key(0))


def test_available_memory_is_some_gigabytes():
    assert 10**8 < levels.available_bytes() < 10**14
