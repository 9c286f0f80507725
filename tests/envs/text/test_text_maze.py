"""`TextMaze-v0` equals LMRL-Gym's maze, written down a second time in plain Python."""

import random
from dataclasses import dataclass, field

import jax
import numpy as np
import pytest

from jaxrl_lm.envs import make, reset_batch, step_batch
from jaxrl_lm.envs.text.answers import PADDING
from jaxrl_lm.errors import InputError

ROWS = [
    "#############",
    "#.....#.....#",
    "###.#####.###",
    "###.#####.###",
    "###.#####.###",
    "###.......###",
    "######.######",
    "######.######",
    "######.######",
    "#############",
]
GOAL = (8, 6)
STEPS = {"move up\n": (-1, 0), "move down\n": (1, 0), "move left\n": (0, -1), "move right\n": (0, 1)}
SIDES = {"to your right": (0, 1), "to your left": (0, -1), "above you": (-1, 0), "below you": (1, 0)}
MOST_STEPS = 100
NUM_GAMES, NUM_TURNS = 256, 40  # 10,240 answers


@dataclass
class Game:
    """One game of LMRL-Gym's maze."""

    place: tuple[int, int]
    is_full: bool = True
    time: int = 0
    rewards: list[float] = field(default_factory=list)

    def is_free(self, step: tuple[int, int]) -> bool:
        return ROWS[self.place[0] + step[0]][self.place[1] + step[1]] == "."

    def text(self) -> str:
        walls = [name for name, step in SIDES.items() if not self.is_free(step)]
        if not walls:
            told = "There are no walls near you."
        elif len(walls) == 1:
            told = f"There is a wall {walls[0]}."
        else:
            told = f"There are walls {', '.join(walls)}."
        if not self.is_full:
            return told + "\n"
        (goal_row, goal_column), (row, column) = GOAL, self.place
        numbers = [" ".join(str(number)) for number in (goal_row, goal_column, row, column)]
        return (
            f"The goal is at position {numbers[0]}, {numbers[1]}. "
            f"Your current position is at position {numbers[2]}, {numbers[3]}. {told}\n"
        )

    def play(self, answer: str) -> tuple[float, bool, bool]:
        self.time += 1
        step = STEPS.get(answer.strip(" ") if answer.endswith("\n") else "")
        if step is None and answer.endswith("\n"):
            step = STEPS.get(answer[:-1].strip(" ") + "\n")
        reward = -4.0 if step is None else -1.0
        if step is not None and self.is_free(step):
            self.place = (self.place[0] + step[0], self.place[1] + step[1])
        is_solved = step is not None and self.place == GOAL
        reward = 0.0 if is_solved else reward
        is_cut = self.time == MOST_STEPS and not is_solved
        return reward - (1.0 if is_cut else 0.0), is_solved, is_cut


def answers(rng: random.Random) -> str:
    """Mostly moves; also moves with spaces, cut ones, others and nothing."""
    move = rng.choice(list(STEPS))
    odd = [f" {move}", move.replace("\n", " \n"), move[:-1], move.upper(), "\n", "move  up\n", "go up\n", move[1:]]
    return rng.choice(odd) if rng.random() < 0.2 else move


@pytest.mark.parametrize("observed", ["fully", "partially"])
def test_texts_rewards_and_lengths_are_those_of_a_game_in_plain_python(observed: str) -> None:
    env, params = make("TextMaze-v0", observed=observed, max_answer_tokens=16)
    rng = random.Random(3)
    step = jax.jit(lambda key, states, actions: step_batch(env, key, states, actions, params))
    observations, states = reset_batch(env, jax.random.key(0), NUM_GAMES, params)
    games = [Game(divmod(int(cell), 13), observed == "fully") for cell in states.inner.position]
    for turn in range(NUM_TURNS):
        assert [env.text_of(row) for row in np.asarray(observations)] == [game.text() for game in games]
        texts = [answers(rng) for _ in games]
        tokens = np.full((NUM_GAMES, 16), PADDING, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = list(text.encode())
        result = jax.device_get(step(jax.random.key(turn + 1), states, tokens))
        played = [game.play(text) for game, text in zip(games, texts, strict=True)]
        assert result.rewards.tolist() == [reward for reward, _, _ in played]
        assert result.terminated.tolist() == [is_solved for _, is_solved, _ in played]
        assert result.truncated.tolist() == [game.time == MOST_STEPS for game in games]
        assert [env.text_of(row) for row in result.final_observations] == [game.text() for game in games]
        observations, states = result.observations, result.states
        for index in np.flatnonzero(result.terminated | result.truncated):
            games[index] = Game(divmod(int(states.inner.position[index]), 13), observed == "fully")


def test_after_100_answers_one_more_is_taken_away() -> None:
    env, params = make("TextMaze-v0")
    answer = jax.numpy.asarray(env.answer_table()[2])
    _, state = env.reset(jax.random.key(1), params)
    state = state.replace(inner=state.inner.replace(position=jax.numpy.int32(14)))  # a dead end on the left

    def play(state, _):
        state, reward = env.transition(state, answer, params)
        return state, (reward, env.is_truncated(state, params))

    _, (rewards, is_cut) = jax.lax.scan(play, state, length=100)
    assert float(rewards.sum()) == -101.0
    assert is_cut.tolist() == [False] * 99 + [True]


def test_the_optimum_is_the_published_one() -> None:
    env, params = make("TextMaze-v0")
    assert len(params.bank.starts) == 25
    np.testing.assert_allclose(float(np.mean(env.optimal_returns(params, 1.0))), -6.84, rtol=1e-6)


def test_two_digits_are_written_apart() -> None:
    env, params = make("TextMaze-v0")
    observations, states = env.level_resets(params)
    texts = {
        tuple(divmod(int(p), 13)): env.text_of(row) for row, p in zip(observations, states.inner.position, strict=True)
    }
    assert texts[(1, 11)] == (
        "The goal is at position 8, 6. Your current position is at position 1, 1 1. "
        "There are walls to your right, above you, below you.\n"
    )
    assert texts[(5, 6)].endswith("at position 5, 6. There is a wall above you.\n")


def test_any_maze_can_be_told() -> None:
    env, params = make("TextMaze-v0", size=7, num_levels=4)
    observations, states = reset_batch(env, jax.random.key(0), 8, params)
    for tokens, level, place in zip(observations, states.inner.level, states.inner.position, strict=True):
        row, column = divmod(int(place), 7)
        goal = divmod(int(params.bank.goals[level]), 7)
        told = env.text_of(tokens)
        assert told.startswith(
            f"The goal is at position {goal[0]}, {goal[1]}. Your current position is at position {row}, {column}. "
        )


def test_too_few_tokens_for_a_move_are_refused() -> None:
    with pytest.raises(InputError, match="max_answer_tokens=5: the longest move takes 11 tokens"):
        make("TextMaze-v0", max_answer_tokens=5)
