"""`FrozenLake-text` and `Sokoban-text` equal the games in plain Python, answer by answer."""

import random
from typing import Any

import jax
import numpy as np
import pytest

from jaxrl_lm.envs import make, reset_batch, step_batch
from jaxrl_lm.envs import sokoban as sokoban_module
from jaxrl_lm.envs.frozen_lake import draw as draw_lake
from jaxrl_lm.envs.text.answers import PADDING
from jaxrl_lm.errors import InputError
from tests.envs.test_frozen_lake import ReferenceLake
from tests.envs.test_sokoban import ReferenceSokoban

NUM_GAMES, NUM_TURNS, SIZE = 256, 40, 24  # 10,240 answers
TURNS, MOVES_PER_TURN, MOST_MOVES, ILLEGAL = 5, 2, 10, -0.1


class LakeInWords(ReferenceLake):
    moves = ("Left", "Down", "Right", "Up")

    def text(self) -> str:
        here = (self.row, self.column)
        signs = {"S": "_P", "F": "_P", "H": "OX", "G": "G√"}
        return "".join(
            "".join(signs[sign][(row, column) == here] for column, sign in enumerate(line)) + "\n"
            for row, line in enumerate(self.rows)
        )


class LakeInCoordinates(LakeInWords):
    def text(self) -> str:
        cells = [(row, column, sign) for row, line in enumerate(self.rows) for column, sign in enumerate(line)]
        holes = "".join(f" ({row}, {column})" for row, column, sign in cells if sign == "H")
        last = len(self.rows) - 1
        return f"Holes:{holes}. Goal: ({last}, {last}). Player: ({self.row}, {self.column}).\n"


class RoomInWords(ReferenceSokoban):
    moves = ("Up", "Down", "Left", "Right")

    def text(self) -> str:
        def sign(cell: tuple[int, int]) -> str:
            is_target = cell in self.targets
            if cell in self.walls:
                return "#"
            if cell == self.player:
                return "PS"[is_target]
            if cell in self.boxes:
                return "X√"[is_target]
            return "_O"[is_target]

        return "".join("".join(sign((row, column)) for column in range(self.size)) + "\n" for row in range(self.size))


def lakes_of(states: Any, params: Any, kind: Any) -> list[Any]:
    return [kind(draw_lake(np.asarray(params.bank.holes[level]))) for level in states.inner.level]


def rooms_of(states: Any, params: Any, kind: Any) -> list[Any]:
    bank = jax.device_get(params.bank)
    return [
        kind(
            sokoban_module.draw(
                bank.walls[level], player=bank.players[level], box=bank.boxes[level], target=bank.targets[level]
            )
        )
        for level in np.asarray(states.inner.level)
    ]


CASES = {
    "lake": ("FrozenLake-text", {}, lakes_of, LakeInWords),
    "lake in coordinates": (
        "FrozenLake-text",
        {"told": "coordinates", "frozen_probability": 0.8},
        lakes_of,
        LakeInCoordinates,
    ),
    "room": ("Sokoban-text", {}, rooms_of, RoomInWords),
}


def play(game: Any, answer: str) -> tuple[float, bool, bool]:
    """Reward, and whether the game ended or was cut; `game.turns` counts answers."""
    game.turns = getattr(game, "turns", 0) + 1
    words = [word.strip(" ") for word in answer.removesuffix("\n").split("||")]
    is_legal = answer.endswith("\n") and all(word in game.moves for word in words)
    reward, is_over = (0.0, False) if is_legal else (ILLEGAL, False)
    for word in words[:MOVES_PER_TURN] if is_legal else []:
        if not is_over and game.time < MOST_MOVES:
            gained, is_over = game.step(game.moves.index(word))
            reward += gained
    return reward, is_over, game.turns >= TURNS or game.time >= MOST_MOVES


def answer_of(rng: random.Random, moves: tuple[str, ...]) -> str:
    """One to three moves; sometimes something else."""
    text = rng.choice([" || ", "||", "  ||"]).join(rng.choice(moves) for _ in range(rng.choice([1, 2, 2, 2, 3])))
    odd = [text, text.lower() + "\n", text + "||\n", "\n", text.replace("||", "|") + "\n", f" {text} \n"]
    return rng.choice(odd) if rng.random() < 0.2 else text + "\n"


@pytest.mark.parametrize("case", CASES)
def test_texts_rewards_and_ends_are_those_of_the_plain_game(case: str) -> None:
    env_id, options, games_of, kind = CASES[case]
    env, params = make(env_id, num_levels=64, max_answer_tokens=SIZE, **options)
    rng = random.Random(4)
    step = jax.jit(lambda key, states, actions: step_batch(env, key, states, actions, params))
    observations, states = reset_batch(env, jax.random.key(0), NUM_GAMES, params)
    games = games_of(states, params, kind)
    num_ended = 0
    for turn in range(NUM_TURNS):
        assert [env.text_of(row) for row in np.asarray(observations)] == [game.text() for game in games]
        texts = [answer_of(rng, kind.moves)[:SIZE] for _ in games]
        tokens = np.full((NUM_GAMES, SIZE), PADDING, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = list(text.encode())
        result = jax.device_get(step(jax.random.key(turn + 1), states, tokens))
        played = [play(game, text) for game, text in zip(games, texts, strict=True)]
        np.testing.assert_allclose(result.rewards, [reward for reward, _, _ in played], rtol=1e-5, atol=1e-6)
        assert result.terminated.tolist() == [is_over for _, is_over, _ in played]
        assert result.truncated.tolist() == [is_cut for _, _, is_cut in played]
        assert [env.text_of(row) for row in result.final_observations] == [game.text() for game in games]
        observations, states = result.observations, result.states
        fresh = games_of(states, params, kind)
        is_done = result.terminated | result.truncated
        games = [new if done else old for new, old, done in zip(fresh, games, is_done, strict=True)]
        num_ended += int(result.terminated.sum())
    assert num_ended > 100


def test_the_oracle_is_that_of_the_game_inside() -> None:
    env, params = make("FrozenLake-text", num_levels=16)
    plain, _ = make("FrozenLake-v0", num_levels=16)
    np.testing.assert_array_equal(env.optimal_returns(params, 1.0), plain.optimal_returns(params, 1.0))
    # A discount per answer is another than one per move.
    assert np.isnan(env.optimal_returns(params, 0.9)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"told": "song"}, "told='song' must be one of grid, coordinates"),
        ({"moves_per_turn": 0}, "most_moves=0"),
        ({"turns": 0}, "max_turns=0"),
        ({"max_answer_tokens": 3}, "max_answer_tokens=3: the longest move takes 6 tokens"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("FrozenLake-text", **options)
