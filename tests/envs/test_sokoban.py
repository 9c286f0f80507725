"""`Sokoban-v0`: rooms, moves, rewards, shortest solutions and best returns against plain Python."""

import functools
from collections import Counter, deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.envs import make
from jaxrl_lm.envs.bank import BankParams
from jaxrl_lm.envs.sokoban import draw
from jaxrl_lm.envs.sokoban_levels import (
    MOVES,
    UNSOLVABLE,
    SokobanBank,
    SokobanLevels,
    draw_rooms,
    inner_cells,
    shortest_solutions,
)
from jaxrl_lm.envs.stepping import reset_batch, step_batch
from jaxrl_lm.envs.wrappers import wrap
from jaxrl_lm.errors import InputError

NUM_ENVS, NUM_STEPS = 64, 200  # 12,800 actions
STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
# Up, left, up, right.
BY_HAND = ["######", "#____#", "#__O##", "#_X__#", "#_P__#", "######"]


class ReferenceSokoban:
    """The game in plain Python, on the rows of a drawing."""

    def __init__(self, rows: list[str]) -> None:
        cells = {(row, column): sign for row, line in enumerate(rows) for column, sign in enumerate(line)}
        self.size, self.time = len(rows), 0
        self.walls = {cell for cell, sign in cells.items() if sign == "#"}
        self.targets = {cell for cell, sign in cells.items() if sign in "O√S"}
        self.boxes = {cell for cell, sign in cells.items() if sign in "X√"}
        (self.player,) = (cell for cell, sign in cells.items() if sign in "PS")

    def step(self, action: int) -> tuple[float, bool]:
        down, right = STEPS[MOVES[action]]
        ahead = (self.player[0] + down, self.player[1] + right)
        behind = (ahead[0] + down, ahead[1] + right)
        num_before = len(self.boxes & self.targets)
        if ahead in self.boxes and behind not in self.walls | self.boxes:
            self.boxes = self.boxes - {ahead} | {behind}
        if ahead not in self.walls | self.boxes:
            self.player = ahead
        self.time += 1
        is_solved = self.boxes == self.targets
        return -0.1 + len(self.boxes & self.targets) - num_before + 10.0 * is_solved, is_solved

    def planes(self) -> np.ndarray:
        planes = np.zeros((self.size, self.size, 4), int)
        for plane, cells in enumerate((self.walls, {self.player}, self.boxes, self.targets)):
            for cell in cells:
                planes[(*cell, plane)] = 1
        return planes

    def key(self) -> tuple[Any, ...]:
        return self.player, *sorted(self.boxes)


def after(rows: list[str], position: tuple[Any, ...], action: int) -> tuple[tuple[Any, ...], float, bool]:
    """The position that a move leads to, its reward, and whether it solves."""
    game = ReferenceSokoban(rows)
    game.player, game.boxes = position[0], set(position[1:])
    reward, is_solved = game.step(action)
    return game.key(), reward, is_solved


def shortest_solution(rows: list[str]) -> int | None:
    start = ReferenceSokoban(rows).key()
    lengths, waiting = {start: 0}, deque([start])
    while waiting:
        position = waiting.popleft()
        for action in range(4):
            new, _, is_solved = after(rows, position, action)
            if is_solved:
                return lengths[position] + 1
            if new not in lengths:
                lengths[new] = lengths[position] + 1
                waiting.append(new)
    return None


def best_return(rows: list[str], discount: float, num_steps: int) -> float:
    """By recursion over all moves."""

    @functools.cache
    def best(position: tuple[Any, ...], steps_left: int) -> float:
        if steps_left == 0:
            return 0.0
        values = []
        for action in range(4):
            new, reward, is_solved = after(rows, position, action)
            values.append(reward + discount * (0.0 if is_solved else best(new, steps_left - 1)))
        return max(values)

    return best(ReferenceSokoban(rows).key(), num_steps)


def drawings(bank: SokobanBank) -> list[list[str]]:
    bank = jax.device_get(bank)
    rows = zip(bank.walls, bank.players, bank.boxes, bank.targets, strict=True)
    return [draw(walls, player=player, box=box, target=target) for walls, player, box, target in rows]


def params_of(rows: list[str], max_steps: int = 10) -> Any:
    text, solution = "".join(rows), shortest_solution(rows)
    bank = SokobanBank(
        walls=jnp.array([[sign == "#" for sign in text]], jnp.uint8),
        targets=jnp.array([next(cell for cell, sign in enumerate(text) if sign in "OS")], jnp.int32),
        players=jnp.array([next(cell for cell, sign in enumerate(text) if sign in "PS")], jnp.int32),
        boxes=jnp.array([text.index("X")], jnp.int32),
        solutions=jnp.array([UNSOLVABLE if solution is None else solution], jnp.int32),
    )
    return BankParams(max_steps_in_episode=jnp.int32(max_steps), bank=bank)


@functools.cache
def bank_of(part: str = "all", seed: int = 0, num_levels: int = 300, **options: Any) -> SokobanBank:
    env = make("Sokoban-v0", num_levels=1, **options)[0].of_part(part, num_levels)
    return jax.device_get(jax.jit(env.new_params)(jax.random.key(seed)).bank)


def layouts_of(*banks: SokobanBank) -> set[bytes]:
    return {row.tobytes() for bank in banks for row in bank.walls}


def test_random_play_is_that_of_the_plain_game() -> None:
    env, params = make("Sokoban-v0", num_levels=50, max_steps=15, max_solution=4)
    _, first = reset_batch(env, jax.random.key(1), NUM_ENVS, params)
    actions = jax.random.randint(jax.random.key(2), (NUM_STEPS, NUM_ENVS), 0, 4)

    def step(states: Any, inputs: Any) -> tuple[Any, Any]:
        result = step_batch(env, inputs[0], states, inputs[1], params)
        return result.states, result

    keys = jax.random.split(jax.random.key(3), NUM_STEPS)
    _, results = jax.jit(lambda states: jax.lax.scan(step, states, (keys, actions)))(first)
    first, actions, results = jax.device_get((first, actions, results))
    levels, ends = drawings(params.bank), Counter()
    for number in range(NUM_ENVS):
        game = ReferenceSokoban(levels[first.level[number]])
        for time in range(NUM_STEPS):
            reward, is_solved = game.step(int(actions[time, number]))
            assert results.rewards[time, number] == np.float32(reward)
            assert results.terminated[time, number] == is_solved
            assert results.truncated[time, number] == (game.time == 15)
            np.testing.assert_array_equal(results.final_observations[time, number], game.planes())
            if is_solved or game.time == 15:
                ends[is_solved] += 1
                game = ReferenceSokoban(levels[results.states.level[time, number]])
            np.testing.assert_array_equal(results.observations[time, number], game.planes())
    assert min(ends[True], ends[False]) > 50


def test_a_game_by_hand() -> None:
    env, _ = make("Sokoban-v0", num_levels=1)
    params = params_of(BY_HAND)
    state, rewards = env.begin(jnp.int32(0), params), []
    # Up pushes the box beside the target, and the player walks around it; the second "left" is against a wall.
    for move in ("up", "left", "left", "up", "right"):
        assert not env.is_terminated(state, params)
        state, reward = env.transition(state, jnp.int32(MOVES.index(move)), params)
        rewards.append(float(reward))
    assert env.is_terminated(state, params)
    np.testing.assert_allclose(rewards, [-0.1] * 4 + [10.9], rtol=1e-6)
    assert draw(np.asarray(params.bank.walls[0]), player=int(state.player), box=int(state.box), target=15) == [
        "######",
        "#____#",
        "#_P√##",
        "#____#",
        "#____#",
        "######",
    ]


def test_boxes_stop_at_walls_and_players_walk_over_targets() -> None:
    env, _ = make("Sokoban-v0", num_levels=1, size=5, max_steps=20)
    params = params_of(["#####", "#XPO#", "#___#", "#___#", "#####"])
    start = env.begin(jnp.int32(0), params)
    stuck, reward = env.transition(start, jnp.int32(MOVES.index("left")), params)
    assert (int(stuck.player), int(stuck.box), float(reward)) == (7, 6, np.float32(-0.1))
    walked, _ = env.transition(start, jnp.int32(MOVES.index("right")), params)
    walls = np.asarray(params.bank.walls[0])
    assert draw(walls, player=int(walked.player), box=int(walked.box), target=8)[1] == "#X_S#"


@pytest.mark.parametrize("options", [{}, {"size": 5}, {"size": 8, "max_steps": 30, "min_solution": 5}])
def test_every_level_has_the_shortest_solution_that_it_says(options: dict[str, Any]) -> None:
    bank = bank_of(num_levels=60, **options)
    levels = drawings(bank)
    np.testing.assert_array_equal(bank.solutions, [shortest_solution(rows) for rows in levels])
    assert bank.solutions.min() >= options.get("min_solution", 1)
    assert bank.solutions.max() <= options.get("max_steps", 10)
    size = options.get("size", 6)
    for rows in levels:
        text = "".join(rows)
        assert (text.count("X"), text.count("P") + text.count("S"), text.count("O") + text.count("S")) == (1, 1, 1)
        assert {rows[0], rows[-1]} == {"#" * size}
        assert {row[0] + row[-1] for row in rows} == {"##"}


def test_the_table_of_solutions_is_that_of_a_search_from_every_position() -> None:
    size, target = 6, (2, 3)
    walls = np.array([list(row) for row in ["######", "#____#", "#__###", "#____#", "#_#__#", "######"]]) == "#"
    walls[target] = False
    inner = inner_cells(size)
    is_open = ~walls.reshape(-1)[inner]
    at = int(np.flatnonzero(inner == target[0] * size + target[1])[0])
    table = shortest_solutions(jnp.asarray(is_open)[:, None], jnp.array([at]), size - 2, limit=100)
    expected = np.full((16, 16), UNSOLVABLE)
    for player, box in np.ndindex(16, 16):
        if not (is_open[player] and is_open[box]) or player == box:
            continue
        rows = draw(
            walls.reshape(-1).astype(np.uint8), player=int(inner[player]), box=int(inner[box]), target=int(inner[at])
        )
        if box == at:
            expected[player, box] = 0
        elif (length := shortest_solution(rows)) is not None:
            expected[player, box] = length
    np.testing.assert_array_equal(table[:, 0].reshape(16, 16), expected)
    assert ((expected > 3) & (expected < UNSOLVABLE)).any()
    # A search that stops earlier finds the shorter solutions only.
    early = shortest_solutions(jnp.asarray(is_open)[:, None], jnp.array([at]), size - 2, limit=3)
    np.testing.assert_array_equal(early[:, 0].reshape(16, 16), np.where(expected <= 3, expected, UNSOLVABLE))


def test_starts_are_uniform_among_those_with_a_solution() -> None:
    # In the open room of 5x5 with the target at the top, only a box in the middle can be pushed there; the player may
    # be on any of the 8 cells around it.
    source = SokobanLevels(size=5, max_solution=30, num_levels=1)
    bank, is_playable, _ = jax.device_get(jax.jit(source.draw, static_argnums=1)(jax.random.key(0), 60_000))
    is_it = is_playable & (bank.walls.reshape(-1, 5, 5)[:, 1:4, 1:4].sum((1, 2)) == 0) & (bank.targets == 7)
    counts = Counter(zip(bank.players[is_it].tolist(), bank.boxes[is_it].tolist(), strict=True))
    rows = ["#####", "#_O_#", "#___#", "#___#", "#####"]
    walls = np.array([sign == "#" for sign in "".join(rows)], np.uint8)
    solvable = {
        (int(player), int(box))
        for player in inner_cells(5)
        for box in inner_cells(5)
        if player != box
        and box != 7
        and shortest_solution(draw(walls, player=int(player), box=int(box), target=7)) is not None
    }
    assert len(solvable) == 8
    assert set(counts) == solvable
    mean = sum(counts.values()) / len(solvable)
    assert mean > 20
    assert max(abs(count - mean) for count in counts.values()) < 5 * np.sqrt(mean)


def test_rooms_are_connected_and_differ() -> None:
    rooms = np.asarray(jax.jit(draw_rooms, static_argnums=(1, 2))(jax.random.key(0), 500, 8)).reshape(500, 8, 8)
    assert len({room.tobytes() for room in rooms}) > 400
    for room in rooms:
        floor = {(int(row), int(column)) for row, column in np.argwhere(room == 0)}
        assert len(floor) >= 3
        waiting, found = [min(floor)], {min(floor)}
        while waiting:
            row, column = waiting.pop()
            for down, right in STEPS.values():
                cell = (row + down, column + right)
                if cell in floor - found:
                    found.add(cell)
                    waiting.append(cell)
        assert found == floor


@pytest.mark.parametrize(("discount", "num_steps"), [(0.9, 10), (1.0, 10), (0.0, 10), (0.99, 3)])
def test_the_best_return_is_that_of_all_moves_tried(discount: float, num_steps: int) -> None:
    env, params = make("Sokoban-v0", num_levels=8, min_solution=2)
    params = params.replace(max_steps_in_episode=jnp.int32(num_steps))
    expected = [best_return(rows, discount, num_steps) for rows in drawings(params.bank)]
    np.testing.assert_allclose(env.optimal_returns(params, discount), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(env.optimal_returns(params, jnp.float32(discount)), expected, rtol=1e-5, atol=1e-6)


def test_the_best_return_by_hand() -> None:
    env, _ = make("Sokoban-v0", num_levels=1)
    params = params_of(BY_HAND)
    assert int(params.bank.solutions[0]) == 4
    np.testing.assert_allclose(env.optimal_returns(params, 1.0), [10.6], rtol=1e-6)
    np.testing.assert_allclose(env.optimal_returns(params, 0.5), [-0.1 * 1.75 + 10.9 / 8], rtol=1e-6)
    np.testing.assert_allclose(env.optimal_returns(params_of(BY_HAND, max_steps=3), 1.0), [-0.3], rtol=1e-6)
    clipped = wrap(env, params, ("clip_reward=1",))
    np.testing.assert_allclose(clipped.optimal_returns(params, 1.0), [0.7], rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"size": 5}])
def test_no_layout_of_training_is_ever_held_out(options: dict[str, Any]) -> None:
    training, held_out = ([bank_of(part, seed, **options) for seed in range(2)] for part in ("training", "held-out"))
    assert len(layouts_of(*training)) > len(layouts_of(*held_out)) > 5
    assert not layouts_of(*training) & layouts_of(*held_out)


def test_harder_levels_are_evaluated_in_rooms_that_training_held_out() -> None:
    trained = make("Sokoban-v0", num_levels=1, max_solution=4)[0]
    harder = make("Sokoban-v0", num_levels=1, min_solution=5)[0].of_part("held-out", 300, trained=trained)
    bank = jax.device_get(jax.jit(harder.new_params)(jax.random.key(0)).bank)
    assert bank.solutions.min() >= 5
    assert not layouts_of(bank) & layouts_of(bank_of("training", max_solution=4, num_levels=2000))


def test_levels_and_layouts_are_counted() -> None:
    env, params = make("Sokoban-v0", num_levels=4)
    walls = np.zeros((4, 36), np.uint8)
    walls[3, 7] = 1
    bank = SokobanBank(
        walls=walls,
        targets=np.array([8, 8, 8, 8]),
        players=np.array([9, 9, 10, 10]),
        boxes=np.array([14, 14, 14, 14]),
        solutions=np.array([3, 3, 3, 3]),
    )
    assert env.count_levels(params.replace(bank=bank)) == (3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "size=4 must be from 5 to 16"),
        ({"size": 17}, "size=17 must be from 5 to 16"),
        ({"num_boxes": 2}, "num_boxes=2 must be 1"),
        ({"num_levels": 0}, "num_levels=0 must be at least 1"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"min_solution": 0}, "min_solution=0 must be at least 1"),
        ({"min_solution": 11}, "min_solution=11 must be at most max_solution=10"),
        ({"max_solution": 11}, "max_solution=11 must be at most max_steps=10"),
        ({"size": 5, "max_steps": 90, "min_solution": 80}, r"only 0 of 8192 drawn rooms.*change size, min_solution"),
        ({"num_levels": 10**12}, r"num_levels=1000000000000 rooms of 6x6 cells.*GB.*ask for at most"),
    ],
)
def test_bad_options_are_refused_with_field_value_and_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("Sokoban-v0", **options)
