"""`FrozenLake-text` and `Sokoban-text`: the games of RAGEN in words, several moves to a turn.

Reference: Wang et al., 2025, RAGEN: Understanding Self-Evolution in LLM Agents via Multi-Turn Reinforcement Learning.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl_lm.envs import frozen_lake, sokoban
from jaxrl_lm.envs.frozen_lake import FrozenLake, FrozenLakeState, make_frozen_lake
from jaxrl_lm.envs.sokoban import Sokoban, SokobanState, make_sokoban
from jaxrl_lm.envs.text.answers import AnswerFormat
from jaxrl_lm.envs.text.vocabulary import byte_vocabulary, vocabulary_of
from jaxrl_lm.envs.text.world import Rules, Story, TextWorld

Told = Literal["grid", "coordinates"]

LAKE_SIGNS = ("_", "O", "G", "P", "X", "√")
"""Ice, hole, goal; player on ice, in a hole, at the goal."""

ROOM_SIGNS = ("_", "#", "O", "P", "S", "X", "√")
"""Floor, wall, target; player on floor, on the target; box on floor, on the target."""


def make_text_frozen_lake(
    *,
    tokenizer: Any = None,
    told: Told = "grid",
    size: int = 4,
    frozen_probability: int | float = 0.9,
    is_slippery: bool = False,
    num_levels: int = 4096,
    seed: int = 0,
    max_steps: int = 10,
    turns: int = 5,
    moves_per_turn: int = 2,
    illegal_reward: int | float = -0.1,
    max_answer_tokens: int | None = None,
) -> TextWorld:
    """A lake in words.

    Args:
        tokenizer: a Hugging Face tokenizer; None for one token per byte.
        told: "grid": a sign per cell. "coordinates": rows and columns of holes, goal and player.
        size: of `FrozenLake-v0`.
        frozen_probability: of `FrozenLake-v0`.
        is_slippery: of `FrozenLake-v0`.
        num_levels: of `FrozenLake-v0`.
        seed: of `FrozenLake-v0`.
        max_steps: moves of an episode.
        turns: answers of an episode.
        moves_per_turn: moves of an answer, joined by `||`.
        illegal_reward: of an answer that is no move.
        max_answer_tokens: tokens of an answer; None for the longest one.

    Raises:
        InputError: an option does not fit, or the tokenizer cannot express a text.
    """
    lake = make_frozen_lake(
        size=size,
        frozen_probability=frozen_probability,
        is_slippery=is_slippery,
        num_levels=num_levels,
        seed=seed,
        max_steps=max_steps,
        observation="grid",
    )
    story = Story(_grid(size, LAKE_SIGNS), _draw_lake) if told == "grid" else _coordinates(size)
    moves = tuple(move.capitalize() for move in frozen_lake.MOVES)
    answers = AnswerFormat(moves=moves, most_moves=moves_per_turn)
    rules = Rules(max_turns=turns, illegal_reward=float(illegal_reward))
    vocabulary = byte_vocabulary() if tokenizer is None else vocabulary_of(tokenizer)
    return TextWorld("FrozenLake-text", lake, story, answers, rules, vocabulary, max_answer_tokens)


def make_text_sokoban(
    *,
    tokenizer: Any = None,
    size: int = 6,
    num_levels: int = 4096,
    seed: int = 0,
    max_steps: int = 10,
    min_solution: int = 1,
    max_solution: int | None = None,
    turns: int = 5,
    moves_per_turn: int = 2,
    illegal_reward: int | float = -0.1,
    max_answer_tokens: int | None = None,
) -> TextWorld:
    """A room of Sokoban in words, a sign per cell.

    Args:
        tokenizer: a Hugging Face tokenizer; None for one token per byte.
        size: of `Sokoban-v0`.
        num_levels: of `Sokoban-v0`.
        seed: of `Sokoban-v0`.
        max_steps: moves of an episode.
        min_solution: of `Sokoban-v0`.
        max_solution: of `Sokoban-v0`.
        turns: answers of an episode.
        moves_per_turn: moves of an answer, joined by `||`.
        illegal_reward: of an answer that is no move.
        max_answer_tokens: tokens of an answer; None for the longest one.

    Raises:
        InputError: an option does not fit, or the tokenizer cannot express a text.
    """
    room = make_sokoban(
        size=size,
        num_levels=num_levels,
        seed=seed,
        max_steps=max_steps,
        min_solution=min_solution,
        max_solution=max_solution,
    )
    moves = tuple(move.capitalize() for move in sokoban.MOVES)
    answers = AnswerFormat(moves=moves, most_moves=moves_per_turn)
    rules = Rules(max_turns=turns, illegal_reward=float(illegal_reward))
    story = Story(_grid(size, ROOM_SIGNS), _draw_room)
    vocabulary = byte_vocabulary() if tokenizer is None else vocabulary_of(tokenizer)
    return TextWorld("Sokoban-text", room, story, answers, rules, vocabulary, max_answer_tokens)


def _grid(size: int, signs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """A place per cell; the last of a row ends its line."""
    ends = tuple(sign + "\n" for sign in signs)
    return tuple(ends if cell % size == size - 1 else signs for cell in range(size**2))


def _draw_lake(lake: FrozenLake, state: FrozenLakeState, params: Any) -> jax.Array:
    del lake
    ground = params.bank.holes[state.level].astype(jnp.int32).at[-1].set(2)
    is_player = jnp.arange(len(ground)) == state.position
    return ground + jnp.where(is_player, len(LAKE_SIGNS) // 2, 0)


def _draw_room(room: Sokoban, state: SokobanState, params: Any) -> jax.Array:
    del room
    bank = params.bank
    cells = jnp.arange(bank.walls.shape[1])
    is_target, is_wall = cells == bank.targets[state.level], bank.walls[state.level] > 0
    signs = jnp.where(is_wall, 1, jnp.where(is_target, 2, 0))
    signs = jnp.where(cells == state.player, 3 + is_target, signs)
    return jnp.where(cells == state.box, 5 + is_target, signs)


def _coordinates(size: int) -> Story:
    cells = tuple(f" ({cell // size}, {cell % size})" for cell in range(size**2))
    holes = tuple(("", cell) for cell in cells)
    return Story((("Holes:",), *holes, (f". Goal:{cells[-1]}. Player:",), cells, (".\n",)), _say_lake)


def _say_lake(lake: FrozenLake, state: FrozenLakeState, params: Any) -> jax.Array:
    del lake
    holes = params.bank.holes[state.level].astype(jnp.int32)
    zero = jnp.zeros(1, jnp.int32)
    return jnp.concatenate([zero, holes, zero, state.position[None], zero])
