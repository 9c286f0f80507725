"""Mazes held out from training share no walls with it, at any size, and every count is what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.envs import make
from jaxrl_lm.envs.maze import levels
from jaxrl_lm.envs.maze.grid import LevelBank
from jaxrl_lm.envs.maze.held_out import count_distinct, hash_layouts, is_held_out, split_levels
from jaxrl_lm.envs.maze.levels import LevelSource
from jaxrl_lm.errors import InputError


@functools.cache
def banks_of(generator: str, size: int, num_levels: int, part: str) -> list[LevelBank]:
    source = LevelSource(generator=generator, height=size, width=size, num_levels=num_levels, part=part)
    make_bank = jax.jit(source.make_bank)
    return [jax.device_get(make_bank(jax.random.key(seed))) for seed in range(2)]


def layouts_of(banks: list[LevelBank]) -> set[bytes]:
    return {row.tobytes() for bank in banks for row in bank.moves}


# 5x5 has 4 layouts, 7x7 88 (backtracker) or 192; 1.7 % of random_walls of 13x13 have no wall at all.
@pytest.mark.parametrize(
    ("generator", "size"), [("backtracker", 5), ("backtracker", 7), ("random_walls", 13), ("braided", 7)]
)
def test_no_layout_of_training_is_ever_held_out(generator: str, size: int) -> None:
    training, held_out = (banks_of(generator, size, 500, part) for part in ("training", "held-out"))
    assert all(bank.moves.shape[0] == 500 for bank in training + held_out)
    assert layouts_of(training)
    assert layouts_of(held_out)
    assert not layouts_of(training) & layouts_of(held_out)


def test_each_part_of_the_smallest_mazes_has_its_layouts() -> None:
    # Of the 4 spanning trees of 2x2 rooms, one is held out, since that makes an eighth or more.
    training, held_out = (banks_of("backtracker", 5, 500, part) for part in ("training", "held-out"))
    assert (len(layouts_of(training)), len(layouts_of(held_out))) == (3, 1)


def test_an_eighth_of_larger_mazes_is_held_out() -> None:
    source = LevelSource(generator="random_walls", height=9, width=9, num_levels=8000)
    bank = jax.jit(source.make_bank)(jax.random.key(0))
    share = np.mean(is_held_out(bank, split_levels("random_walls", 9, 9)))
    assert abs(share - 1 / 8) < 5 * np.sqrt(1 / 8 * 7 / 8 / 8000)


def test_where_all_levels_have_the_same_walls_start_and_goal_decide() -> None:
    split = split_levels("braided", 5, 5)
    assert split.unit == "level"
    training, held_out = (banks_of("braided", 5, 200, part) for part in ("training", "held-out"))
    ends = [
        {(*pair,) for bank in banks for pair in zip(bank.starts, bank.goals, strict=True)}
        for banks in (training, held_out)
    ]
    assert layouts_of(training) == layouts_of(held_out)
    assert not ends[0] & ends[1]


def test_another_generator_is_evaluated_on_what_the_trained_one_held_out() -> None:
    trained, other = split_levels("backtracker", 7, 7), split_levels("wilson", 7, 7, trained_on="backtracker")
    assert other.threshold == trained.threshold
    source = LevelSource(
        generator="wilson", height=7, width=7, num_levels=300, part="held-out", trained_on="backtracker"
    )
    wilson = jax.device_get(jax.jit(source.make_bank)(jax.random.key(0)))
    assert not layouts_of([wilson]) & layouts_of(banks_of("backtracker", 7, 500, "training"))


def test_a_generator_none_of_whose_layouts_is_held_out_is_refused() -> None:
    # Both layouts of 5x7 have hashes above those that are held out of the backtracker's 15.
    with pytest.raises(InputError, match="generator='braided': none of its 2 layouts of 5x7 cells is held out"):
        split_levels("braided", 5, 7, trained_on="backtracker")


def test_the_hash_is_of_the_walls_alone_and_the_same_for_a_row_wherever_it_is() -> None:
    moves = np.random.default_rng(0).integers(0, 16, (5, 25)).astype(np.uint8)
    hashes = np.asarray(hash_layouts(jnp.asarray(moves)))
    assert len(set(hashes.tolist())) == 5
    np.testing.assert_array_equal(hash_layouts(jnp.asarray(moves[::-1].copy())), hashes[::-1])


def test_distinct_levels_and_layouts_are_counted() -> None:
    bank = LevelBank(
        moves=np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.uint8),
        starts=np.array([0, 0, 1, 0]),
        goals=np.array([1, 1, 0, 1]),
        distances=np.zeros((4, 2), np.uint16),
    )
    assert count_distinct(bank) == (3, 2)


def test_memory_for_the_levels_that_are_drawn_but_not_kept_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # An eighth is held out, so that 12 times as many are drawn: 12 * 11 * 3 bytes a cell.
    monkeypatch.setattr(levels, "available_bytes", lambda: 10**9)
    LevelSource(num_levels=20_000)._check_memory()
    with pytest.raises(InputError, match="num_levels=20000 held-out levels of 13x13 cells take"):
        LevelSource(num_levels=20_000, part="held-out")._check_memory()


def test_levels_are_generated_once_where_gymnax_is_given_no_parameters() -> None:
    env, _ = make("Maze-v0", size=5, num_levels=4)
    fresh = type(env)(env.config, env.source)
    # The first to ask may be a step that is being traced.
    state = env.reset(jax.random.key(0))[1]
    jax.jit(lambda state: fresh.step(jax.random.key(0), state, 0))(state)
    assert isinstance(fresh.default_params.bank.moves, jax.Array)
    assert fresh.default_params.bank.moves is fresh.default_params.bank.moves
    np.testing.assert_array_equal(fresh.default_params.bank.moves, env.default_params.bank.moves)


def test_fresh_levels_replace_the_half_that_no_episode_is_in() -> None:
    env, params = make("Maze-v0", size=5, num_levels=16)
    refresh = jax.jit(env.refresh)
    first = refresh(params, jax.random.key(1))
    second = refresh(first, jax.random.key(2))
    assert first.bank.num_levels == second.bank.num_levels == 32
    assert (int(first.first_level), int(second.first_level)) == (16, 0)
    np.testing.assert_array_equal(first.bank.moves[:16], params.bank.moves)
    np.testing.assert_array_equal(second.bank.moves[16:], first.bank.moves[16:])
    assert np.any(np.asarray(second.bank.moves[:16]) != np.asarray(first.bank.moves[:16]))
    for drawn, low in ((first, 16), (second, 0)):
        levels = np.asarray(env.initial_states(jax.random.key(3), (500,), drawn).level)
        assert set(levels) == set(range(low, low + 16))


def test_current_levels_are_those_that_episodes_are_drawn_from_each_once_before_any_again() -> None:
    env, params = make("Maze-v0", size=9, num_levels=16)
    refreshed = jax.jit(env.refresh)(params, jax.random.key(1))
    chosen = jax.jit(env.current_levels, static_argnums=2)(refreshed, jax.random.key(2), 24)
    rows = [row.tobytes() for row in np.asarray(chosen.bank.moves)]
    new = {row.tobytes() for row in np.asarray(refreshed.bank.moves[16:])}
    assert set(rows) == new
    assert len(set(rows[:16])) == len(new)
    assert (chosen.bank.num_levels, int(chosen.first_level), int(chosen.num_drawn)) == (24, 0, 24)
