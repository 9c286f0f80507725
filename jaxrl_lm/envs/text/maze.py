"""`TextMaze-v0`: the mazes of `Maze-v0` in words.

Reference: Abdulhai et al., 2023, LMRL Gym: Benchmarks for Multi-Turn Reinforcement Learning with Language Models.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl_lm.envs.maze.environment import Maze, MazeConfig, MazeState, Reward
from jaxrl_lm.envs.maze.levels import source_from_options
from jaxrl_lm.envs.text.answers import AnswerFormat
from jaxrl_lm.envs.text.vocabulary import byte_vocabulary, vocabulary_of
from jaxrl_lm.envs.text.world import Rules, Story, TextWorld

Observed = Literal["fully", "partially"]

MOVES = ("move up", "move down", "move left", "move right")
"""In the order of the maze's moves."""

_SIDES = ("above you", "below you", "to your left", "to your right")
_ORDER = (3, 2, 0, 1)  # in which walls are named


def make_text_maze(
    *,
    tokenizer: Any = None,
    observed: Observed = "fully",
    layout: str | None = None,
    size: int | None = None,
    generator: str | None = None,
    num_levels: int | None = None,
    seed: int = 0,
    reward: Reward = "steps",
    max_steps: int = 100,
    discount: int | float = 0.99,
    illegal_reward: int | float = -4.0,
    cut_reward: int | float = -1.0,
    max_answer_tokens: int | None = None,
) -> TextWorld:
    """A maze in words.

    Args:
        tokenizer: a Hugging Face tokenizer; None for one token per byte.
        observed: "fully": goal, position and walls around. "partially": the walls alone.
        layout: of `Maze-v0`; by default LMRL-Gym's double T where no levels are generated.
        size: of `Maze-v0`.
        generator: of `Maze-v0`.
        num_levels: of `Maze-v0`.
        seed: of `Maze-v0`.
        reward: of `Maze-v0`; LMRL-Gym's by default.
        max_steps: answers of an episode.
        discount: of `Maze-v0`.
        illegal_reward: of an answer that is no move.
        cut_reward: added where the last answer does not reach the goal.
        max_answer_tokens: tokens of an answer; None for the longest move.

    Raises:
        InputError: an option does not fit, or the tokenizer cannot express a text.
    """
    if layout is None and (size, generator, num_levels) == (None, None, None):
        layout = "double-t"
    source = source_from_options(size=size, generator=generator, num_levels=num_levels, seed=seed, layout=layout)
    # What the maze itself would show is not computed; a window says that walls are seen, so levels may change.
    maze = Maze(MazeConfig(observation="window", reward=reward, max_steps=max_steps, discount=discount), source)
    story = _story(maze) if observed == "fully" else Story((_walls(),), _choose_walls)
    rules = Rules(illegal_reward=float(illegal_reward), cut_reward=float(cut_reward))
    vocabulary = byte_vocabulary() if tokenizer is None else vocabulary_of(tokenizer)
    return TextWorld("TextMaze-v0", maze, story, AnswerFormat(moves=MOVES), rules, vocabulary, max_answer_tokens)


def _story(maze: Maze) -> Story:
    rows, columns = (tuple(map(_say_number, range(size))) for size in (maze.source.height, maze.source.width))
    goal, here = "The goal is at position", ". Your current position is at position"
    places = ((goal,), rows, (",",), columns, (here,), rows, (",",), columns, (". ",), _walls())
    return Story(places, _choose_fully)


def _choose_fully(maze: Maze, state: MazeState, params: Any) -> jax.Array:
    width = maze.source.width
    goal, here = params.bank.goals[state.level], state.position
    zero = jnp.zeros((), jnp.int32)
    numbers = (zero, goal // width, zero, goal % width, zero, here // width, zero, here % width, zero)
    return jnp.stack([*numbers, *_choose_walls(maze, state, params)])


def _choose_walls(maze: Maze, state: MazeState, params: Any) -> jax.Array:
    del maze
    return params.bank.moves[state.level, state.position].astype(jnp.int32)[None]


def _say_number(number: int) -> str:
    """As LMRL-Gym writes it: with a space between two digits."""
    return "".join(f" {digit}" for digit in str(number))


def _walls() -> tuple[str, ...]:
    """The sentence about walls, by the bits of the legal moves."""
    return tuple(_say_walls(moves) + "\n" for moves in range(16))


def _say_walls(moves: int) -> str:
    names = [_SIDES[move] for move in _ORDER if not moves >> move & 1]
    if not names:
        return "There are no walls near you."
    return f"There is a wall {names[0]}." if len(names) == 1 else f"There are walls {', '.join(names)}."
