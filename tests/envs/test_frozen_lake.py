"""`FrozenLake-v0`: maps, moves, slips and best returns against plain Python, and gymnasium's own tables."""

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from jaxrl_lm.envs import make
from jaxrl_lm.envs.bank import BankParams
from jaxrl_lm.envs.frozen_lake import MOVES, LakeBank, draw, optimal_values
from jaxrl_lm.envs.stepping import reset_batch, step_batch
from jaxrl_lm.envs.wrappers import wrap
from jaxrl_lm.errors import InputError

# 64 * 200 actions of each setting
NUM_ENVS, NUM_STEPS = 64, 200
STEPS = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
# Left or down from the start is safe, right is a hole; the goal is 4 moves away.
SMALL_MAP = ["SHF", "FFF", "FFG"]


def reference_slip(seed: int) -> int:
    """-1, 0 or 1: the last steps of MurmurHash3 on 32 bits, modulo 3."""
    seed = ((seed ^ seed >> 16) * 0x85EBCA6B) % 2**32
    seed = ((seed ^ seed >> 13) * 0xC2B2AE35) % 2**32
    return (seed ^ seed >> 16) % 3 - 1


class ReferenceLake:
    """The game in plain Python."""

    def __init__(self, rows: list[str]) -> None:
        self.rows, self.row, self.column, self.time = rows, 0, 0, 0

    def step(self, action: int) -> tuple[float, bool]:
        down, right = STEPS[MOVES[action]]
        last = len(self.rows) - 1
        self.row = min(max(self.row + down, 0), last)
        self.column = min(max(self.column + right, 0), last)
        self.time += 1
        sign = self.rows[self.row][self.column]
        return float(sign == "G"), sign in "GH"

    def planes(self) -> np.ndarray:
        here = np.zeros((len(self.rows),) * 2, int)
        here[self.row, self.column] = 1
        cells = np.array([list(row) for row in self.rows])
        return np.stack([cells == "H", here, cells == "G"], axis=-1)


def params_of(rows: list[str], max_steps: int = 10, num_levels: int = 1) -> Any:
    """Parameters with copies of one map, whose slips differ."""
    holes = np.array([sign == "H" for row in rows for sign in row], np.uint8)
    seeds = np.arange(num_levels, dtype=np.uint32)
    bank = LakeBank(holes=jnp.tile(holes, (num_levels, 1)), slip_seeds=jnp.asarray(seeds))
    return BankParams(max_steps_in_episode=jnp.int32(max_steps), bank=bank, num_drawn=jnp.int32(num_levels))


def bank_of(part: str = "all", seed: int = 0, num_levels: int = 300, trained: Any = None, **options: Any) -> LakeBank:
    env = make("FrozenLake-v0", num_levels=1, **options)[0].of_part(part, num_levels, trained=trained)
    return jax.device_get(jax.jit(env.new_params)(jax.random.key(seed)).bank)


def maps_of(*banks: LakeBank) -> set[bytes]:
    return {row.tobytes() for bank in banks for row in bank.holes}


def can_be_crossed(rows: list[str]) -> bool:
    size, found, waiting = len(rows), {(0, 0)}, [(0, 0)]
    while waiting:
        row, column = waiting.pop()
        for down, right in STEPS.values():
            cell = (row + down, column + right)
            if cell not in found and min(cell) >= 0 and max(cell) < size and rows[cell[0]][cell[1]] != "H":
                found.add(cell)
                waiting.append(cell)
    return (size - 1, size - 1) in found


def best_return(rows: list[str], discount: float, num_steps: int, is_slippery: bool) -> float:
    """By recursion over all moves and slips."""

    @functools.cache
    def best(row: int, column: int, steps_left: int) -> float:
        if steps_left == 0 or rows[row][column] in "GH":
            return 0.0
        values = []
        for action in range(4):
            ends = []
            for slip in (-1, 0, 1) if is_slippery else (0,):
                game = ReferenceLake(rows)
                game.row, game.column = row, column
                reward, _ = game.step((action + slip) % 4)
                ends.append(reward + discount * best(game.row, game.column, steps_left - 1))
            values.append(sum(ends) / len(ends))
        return max(values)

    return best(0, 0, num_steps)


@functools.cache
def random_play(is_slippery: bool) -> tuple[Any, Any, Any, Any]:
    """Parameters, first states, actions `[T, B]` and what every step gave."""
    options = {"num_levels": 50, "frozen_probability": 0.7, "observation": "grid"}
    env, params = make("FrozenLake-v0", is_slippery=is_slippery, **options)
    _, states = reset_batch(env, jax.random.key(1), NUM_ENVS, params)
    actions = jax.random.randint(jax.random.key(2), (NUM_STEPS, NUM_ENVS), 0, 4)

    def step(states: Any, inputs: Any) -> tuple[Any, Any]:
        result = step_batch(env, inputs[0], states, inputs[1], params)
        return result.states, result

    keys = jax.random.split(jax.random.key(3), NUM_STEPS)
    _, results = jax.jit(lambda states: jax.lax.scan(step, states, (keys, actions)))(states)
    return jax.device_get((params, states, actions, results))


@pytest.mark.parametrize("is_slippery", [False, True])
def test_random_play_is_that_of_the_plain_game(is_slippery: bool) -> None:
    params, first, actions, results = random_play(is_slippery)
    maps = [draw(holes) for holes in params.bank.holes]
    ends = Counter()
    for number in range(NUM_ENVS):
        game, seed = ReferenceLake(maps[first.level[number]]), int(first.seed[number])
        for time in range(NUM_STEPS):
            slip = reference_slip(seed) if is_slippery else 0
            reward, is_over = game.step((int(actions[time, number]) + slip) % 4)
            assert results.rewards[time, number] == reward
            assert results.terminated[time, number] == is_over
            assert results.truncated[time, number] == (game.time == 10)
            np.testing.assert_array_equal(results.final_observations[time, number], game.planes())
            seed = (seed + 0x9E3779B9) % 2**32
            if is_over or game.time == 10:
                ends[reward if is_over else "cut"] += 1
                game = ReferenceLake(maps[results.states.level[time, number]])
                seed = int(results.states.seed[time, number])
            np.testing.assert_array_equal(results.observations[time, number], game.planes())
    # Goals, falls and time limits have all been seen.
    assert min(ends[1.0], ends[0.0], ends["cut"]) > 10


@pytest.mark.parametrize("is_slippery", [False, True])
def test_moves_are_those_of_gymnasiums_table(is_slippery: bool) -> None:
    rows = ["SFFF", "FHFH", "FFFH", "HFFG"]
    table = FrozenLakeEnv(desc=rows, is_slippery=is_slippery).P
    env, _ = make("FrozenLake-v0", num_levels=1, is_slippery=is_slippery)
    params, num_seeds = params_of(rows, max_steps=100), 3000
    state = env.begin(jnp.zeros(num_seeds, jnp.int32), params)
    seeds = jax.random.bits(jax.random.key(0), (num_seeds,), jnp.uint32)
    step = jax.jit(jax.vmap(env.transition, (0, None, None)))
    for cell in range(16):
        if rows[cell // 4][cell % 4] in "GH":
            continue
        here = state.replace(position=jnp.full(num_seeds, cell, jnp.int32), seed=seeds)
        for action in range(4):
            expected: Counter[tuple[int, float, bool]] = Counter()
            for probability, there, reward, is_over in table[cell][action]:
                expected[(int(there), float(reward), bool(is_over))] += probability
            new, rewards = step(here, jnp.int32(action), params)
            is_over = jax.vmap(env.is_terminated, (0, None))(new, params)
            found = Counter(zip(new.position.tolist(), rewards.tolist(), is_over.tolist(), strict=True))
            assert set(found) == set(expected)
            for end, count in found.items():
                share = expected[end]
                assert abs(count / num_seeds - share) <= 5 * np.sqrt(share * (1 - share) / num_seeds)


def test_slips_of_a_step_say_nothing_of_the_next_one() -> None:
    env, params = make("FrozenLake-v0", num_levels=1, is_slippery=True)
    states = env.initial_states(jax.random.key(0), (9000,), params)
    slips = []
    for _ in range(2):
        # From cell 5 of 4x4, each of the moves leads somewhere else.
        middle = states.replace(position=jnp.full(9000, 5, jnp.int32))
        states = jax.vmap(env.transition, (0, None, None))(middle, jnp.int32(2), params)[0]
        slips.append(np.asarray(states.position))
    counts = Counter(zip(*(each.tolist() for each in slips), strict=True))
    assert set(counts) == {(first, second) for first in (9, 6, 1) for second in (9, 6, 1)}
    # Each of the nine pairs has a chance of 1/9: 1000 +- 30.
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_an_evaluation_repeats_its_slips_and_copies_of_a_map_have_their_own() -> None:
    env, _ = make("FrozenLake-v0", num_levels=1, is_slippery=True)
    params = params_of(SMALL_MAP, num_levels=50)
    seeds = np.asarray(env.level_resets(params)[1].seed)
    np.testing.assert_array_equal(seeds, env.level_resets(params)[1].seed)
    assert len(set(seeds.tolist())) == 50
    same = params.replace(bank=params.bank.replace(slip_seeds=jnp.zeros(50, jnp.uint32)))
    assert len(set(env.level_resets(same)[1].seed.tolist())) == 50


def test_a_fall_and_a_success_by_hand() -> None:
    env, _ = make("FrozenLake-v0", size=3, num_levels=1)
    params = params_of(SMALL_MAP)

    def play(*moves: str) -> tuple[list[float], list[bool], int]:
        state, rewards, ends = env.begin(jnp.int32(0), params), [], []
        for move in moves:
            state, reward = env.transition(state, jnp.int32(MOVES.index(move)), params)
            rewards.append(float(reward))
            ends.append(bool(env.is_terminated(state, params)))
        return rewards, ends, int(state.position)

    assert play("right") == ([0.0], [True], 1)
    assert play("left", "up") == ([0.0] * 2, [False] * 2, 0)
    assert play("down", "right", "down", "right") == ([0.0, 0.0, 0.0, 1.0], [False, False, False, True], 8)


@pytest.mark.parametrize(
    "options", [{}, {"size": 6, "frozen_probability": 0.7}, {"size": 2, "frozen_probability": 0.5}]
)
def test_every_map_can_be_crossed_and_has_its_form(options: dict[str, Any]) -> None:
    bank, size = bank_of(**options), options.get("size", 4)
    assert (bank.holes.shape, bank.holes.dtype) == ((300, size**2), np.uint8)
    maps = [draw(holes) for holes in bank.holes]
    assert all(can_be_crossed(rows) for rows in maps)
    assert all("".join(rows).strip("SFHG") == "" and (rows[0][0], rows[-1][-1]) == ("S", "G") for rows in maps)


def test_holes_are_as_likely_as_in_maps_that_are_drawn_again_until_they_can_be_crossed() -> None:
    # Of the four maps of 2x2 cells, that with two holes cannot be crossed; with q = 1 - p the others have
    # p^2 / (1 - q^2) and, twice, p q / (1 - q^2).
    bank = bank_of(size=2, frozen_probability=0.7, num_levels=9000)
    counts = Counter("".join(draw(holes)) for holes in bank.holes)
    shares = {"SFFG": 0.49 / 0.91, "SHFG": 0.21 / 0.91, "SFHG": 0.21 / 0.91}
    assert set(counts) == set(shares)
    for text, share in shares.items():
        assert abs(counts[text] / 9000 - share) < 5 * np.sqrt(share * (1 - share) / 9000)


@pytest.mark.parametrize("is_slippery", [False, True])
@pytest.mark.parametrize(("discount", "num_steps"), [(0.9, 10), (1.0, 5), (0.0, 10), (0.5, 6)])
def test_the_best_return_is_that_of_all_moves_tried(is_slippery: bool, discount: float, num_steps: int) -> None:
    env, params = make("FrozenLake-v0", num_levels=12, frozen_probability=0.6, is_slippery=is_slippery)
    params = params.replace(max_steps_in_episode=jnp.int32(num_steps))
    expected = [best_return(draw(holes), discount, num_steps, is_slippery) for holes in np.asarray(params.bank.holes)]
    np.testing.assert_allclose(env.optimal_returns(params, discount), expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(env.optimal_returns(params, jnp.float32(discount)), expected, rtol=2e-6, atol=1e-7)


def test_the_best_return_by_hand() -> None:
    env, _ = make("FrozenLake-v0", size=3, num_levels=1)
    # d = 4 moves: 0.9^3, and nothing if there are only 3
    np.testing.assert_allclose(env.optimal_returns(params_of(SMALL_MAP), 0.9), [0.729], rtol=1e-6)
    np.testing.assert_array_equal(env.optimal_returns(params_of(SMALL_MAP, max_steps=3), 0.9), [0.0])
    slippery, _ = make("FrozenLake-v0", size=2, num_levels=1, is_slippery=True)
    # Without holes and with 2 steps: "down" slips to the left, where it stays, or goes down or right, to a cell from
    # which one of three moves leads to the goal.
    np.testing.assert_allclose(slippery.optimal_returns(params_of(["SF", "FG"], 2), 1.0), [2 / 3 / 3], rtol=1e-6)


def test_a_wrapper_that_pays_otherwise_gets_the_return_of_the_same_moves() -> None:
    env, _ = make("FrozenLake-v0", size=3, num_levels=1)
    params = params_of(SMALL_MAP)
    wrapped = wrap(env, params, ("clip_reward=0.5",))
    np.testing.assert_allclose(wrapped.optimal_returns(params, 0.9), [0.5 * 0.729], rtol=1e-6)
    costs = env.optimal_returns(params, 0.9, lambda reward: reward - 1.0)
    np.testing.assert_allclose(costs, [-1 - 0.9 - 0.81], rtol=1e-6)


def test_values_of_all_cells_are_those_of_gymnasiums_table() -> None:
    rows = ["SFFF", "FHFH", "FFFH", "HFFG"]
    table = FrozenLakeEnv(desc=rows, is_slippery=True).P
    values = np.zeros(16)
    for _ in range(200):
        values = np.array(
            [
                max(sum(p * (r + 0.95 * values[s] * (not done)) for p, s, r, done in table[cell][a]) for a in range(4))
                for cell in range(16)
            ]
        )
    is_hole = jnp.asarray(params_of(rows).bank.holes > 0)
    found = optimal_values(is_hole, discount=0.95, num_steps=200, is_slippery=True)
    np.testing.assert_allclose(found[0], values, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"size": 2, "frozen_probability": 0.5}, {"size": 3}, {"size": 7}])
def test_no_map_of_training_is_ever_held_out(options: dict[str, Any]) -> None:
    training, held_out = ([bank_of(part, seed, **options) for seed in range(2)] for part in ("training", "held-out"))
    assert maps_of(*training)
    assert maps_of(*held_out)
    assert not maps_of(*training) & maps_of(*held_out)


def test_the_map_without_holes_is_not_all_that_is_held_out() -> None:
    held_out = bank_of("held-out")
    assert len(maps_of(held_out)) > 20
    assert held_out.holes.any(axis=1).all()


def test_other_lakes_are_evaluated_on_what_the_trained_ones_held_out() -> None:
    trained = make("FrozenLake-v0", num_levels=1, frozen_probability=0.95)[0]
    held_out = bank_of("held-out", trained=trained, frozen_probability=0.7)
    assert not maps_of(held_out) & maps_of(bank_of("training", frozen_probability=0.95, num_levels=3000))


def test_lakes_that_are_hardly_ever_held_out_from_the_training_are_refused() -> None:
    # Of the three maps of 2x2 cells, one with a hole is held out.
    trained = make("FrozenLake-v0", num_levels=1, size=2, frozen_probability=0.5)[0]
    held_out = make("FrozenLake-v0", num_levels=1, size=2, frozen_probability=0.9999)[0].of_part(
        "held-out", 9, trained=trained
    )
    with pytest.raises(InputError, match=r"only 0\.\d+% of the lakes of 2x2 cells.*are held-out levels; evaluate with"):
        held_out.new_params(jax.random.key(0))


def test_both_counts_are_of_different_maps() -> None:
    env, _ = make("FrozenLake-v0", num_levels=1)
    holes = np.zeros((4, 16), np.uint8)
    holes[2:, 5] = 1
    holes[3, 6] = 1
    params = params_of(SMALL_MAP).replace(bank=LakeBank(holes=holes, slip_seeds=np.arange(4, dtype=np.uint32)))
    assert env.count_levels(params) == (3, 3)


def test_without_holes_the_one_map_is_not_generated_and_cannot_be_divided() -> None:
    env, params = make("FrozenLake-v0", frozen_probability=1, num_levels=3)
    assert not env.generates_levels
    assert not params.bank.holes.any()
    with pytest.raises(InputError, match=r"frozen_probability=1.0 have one layout only.*change frozen_probability"):
        env.of_part("training").new_params(jax.random.key(0))


def test_fresh_maps_replace_the_half_that_no_episode_is_in() -> None:
    env, params = make("FrozenLake-v0", num_levels=16)
    refreshed = jax.jit(env.refresh)(params, jax.random.key(1))
    assert refreshed.bank.holes.shape == (32, 16)
    np.testing.assert_array_equal(refreshed.bank.holes[:16], params.bank.holes)
    assert (np.asarray(refreshed.bank.holes[16:]) != np.asarray(params.bank.holes)).any()
    levels = np.asarray(env.initial_states(jax.random.key(3), (500,), refreshed).level)
    assert set(levels.tolist()) == set(range(16, 32))


def test_a_map_is_drawn_in_gymnasiums_letters() -> None:
    holes = np.zeros(9, np.uint8)
    holes[1] = 1
    assert draw(holes) == SMALL_MAP


def test_lakes_that_change_cannot_be_crossed_blindly() -> None:
    assert "observation=grid" in make("FrozenLake-v0", num_levels=1)[0].blindness
    assert make("FrozenLake-v0", num_levels=1, observation="grid")[0].blindness is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size=1 must be from 2 to 255"),
        ({"size": 256}, "size=256 must be from 2 to 255"),
        ({"frozen_probability": 0}, "frozen_probability=0.0 must be above 0"),
        ({"frozen_probability": 1.5}, "frozen_probability=1.5 must be from 0 to 1"),
        ({"frozen_probability": float("nan")}, "frozen_probability=nan must be"),
        ({"frozen_probability": 0.2}, r"of 8192 drawn lakes of 4x4 cells.*can be played; change frozen_probability"),
        ({"num_levels": 0}, "num_levels=0 must be at least 1"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"observation": "window"}, "observation='window' must be one of position, grid"),
        ({"is_slippery": 1}, "is_slippery=1 must be bool"),
        ({"num_levels": 10**12}, r"num_levels=1000000000000 lakes of 4x4 cells.*GB.*ask for at most"),
    ],
)
def test_bad_options_are_refused_with_field_value_and_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("FrozenLake-v0", **options)
