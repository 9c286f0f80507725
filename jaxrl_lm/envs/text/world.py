"""An environment told in words: its observations are texts, its actions answers, both as token ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxrl_lm import checks
from jaxrl_lm.envs.base import BatchEnvironment, EnvironmentWrapper, Pay
from jaxrl_lm.envs.text.answers import PADDING, STOP, AnswerFormat, AnswerReader, make_reader
from jaxrl_lm.envs.text.observations import Template, make_template
from jaxrl_lm.envs.text.vocabulary import Vocabulary
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree


@dataclass(frozen=True)
class Story:
    """How the state of an environment is told.

    Attributes:
        places: the pieces of text at each place.
        choose: `choose(env, state, params) -> numbers of the pieces, [P]`; a function of a module.
    """

    places: tuple[tuple[str, ...], ...]
    choose: Callable[[Any, PyTree, Any], jax.Array]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a game in words adds to its environment.

    Attributes:
        max_turns: answers of an episode, legal or not; None for the time limit of the environment.
        illegal_reward: of an illegal answer, after which the environment is as before.
        cut_reward: added where a limit cuts the episode.
    """

    max_turns: int | None = None
    illegal_reward: float = -1.0
    cut_reward: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "max_turns")
        checks.finite(self, "illegal_reward", "cut_reward")


@struct.dataclass
class TextState(environment.EnvState):
    """State of an episode.

    Attributes:
        time: answers given, int32.
        inner: state of the environment that is told.
    """

    time: PyTree
    inner: PyTree = None


class TextWorld(BatchEnvironment, EnvironmentWrapper):
    """A `BatchEnvironment` of discrete actions in words.

    Observations are int32 `[O]`, actions int32 `[A]`: token ids, then `PADDING`. An action is an answer up to and with
    a stop: a token with a line break, or the end of the text. Parameters are those of the environment inside.
    """

    def __init__(
        self,
        name: str,
        env: BatchEnvironment,
        story: Story,
        answers: AnswerFormat,
        rules: Rules,
        vocabulary: Vocabulary,
        max_answer_tokens: int | None = None,
    ) -> None:
        """Tell an environment.

        Args:
            name: id.
            env: what is told.
            story: how observations are written.
            answers: how actions are written.
            rules: turns and rewards.
            vocabulary: of the tokenizer.
            max_answer_tokens: A; None for the longest answer of `most_moves` moves.

        Raises:
            InputError: the vocabulary cannot express a text, or `max_answer_tokens` are too few for a move.
        """
        super().__init__(env)
        self._name, self.story, self.answers, self.rules, self.vocabulary = name, story, answers, rules, vocabulary
        longest = len(self.answer((self._longest_move(),) * answers.most_moves))
        self.max_answer_tokens = longest if max_answer_tokens is None else max_answer_tokens
        shortest = max(len(self.answer((move,))) for move in range(len(answers.moves)))
        if self.max_answer_tokens < shortest:
            raise InputError(
                f"max_answer_tokens={max_answer_tokens}: the longest move takes {shortest} tokens; give as many or more"
            )

    def _key(self) -> tuple[Any, ...]:
        parts = (self._name, self.env, self.story, self.answers, self.rules, self.vocabulary)
        return (*parts, self.max_answer_tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextWorld) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @cached_property
    def reader(self) -> AnswerReader:
        """The automaton that reads answers."""
        return make_reader(self.answers, self.vocabulary)

    @cached_property
    def template(self) -> Template:
        """The tokens of observations."""
        return make_template(self.story.places, self.vocabulary)

    @property
    def name(self) -> str:
        """Its id."""
        return self._name

    @property
    def end_name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the environment inside."""
        return self.env.end_name

    def answer(self, moves: Sequence[int]) -> list[int]:
        """The tokens of an answer, with its stop."""
        text = f" {self.answers.separator} ".join(self.answers.moves[move] for move in moves)
        return self.vocabulary.encode(text + STOP.decode())

    def answer_table(self) -> np.ndarray:
        """The answers of one move each, int32 `[number of moves, A]`, padded."""
        rows = [self.answer((move,)) for move in range(len(self.answers.moves))]
        return np.array([row + [PADDING] * (self.max_answer_tokens - len(row)) for row in rows], np.int32)

    def text_of(self, tokens: Any) -> str:
        """What an observation or an answer says."""
        return self.vocabulary.decode(np.asarray(tokens).tolist()).decode(errors="replace")

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: Any) -> TextState:
        """States of new episodes, leaves `[*shape, ...]`."""
        return TextState(time=jnp.zeros(shape, jnp.int32), inner=self._told.initial_states(key, shape, params))

    def transition(self, state: TextState, action: jax.Array, params: Any) -> tuple[TextState, jax.Array]:
        """The moves of an answer, until the episode ends, and the sum of their rewards."""
        reading = self.reader.read(action)
        inner, reward = state.inner, jnp.where(reading.is_legal, 0.0, jnp.float32(self.rules.illegal_reward))
        for move in reading.moves:
            is_over = self._told.is_terminated(inner, params) | self._told.is_truncated(inner, params)
            is_made = (move >= 0) & ~is_over
            moved, gained = self._told.transition(inner, jnp.maximum(move, 0), params)
            inner = jax.tree.map(lambda new, old, is_made=is_made: jnp.where(is_made, new, old), moved, inner)
            reward += jnp.where(is_made, gained, 0.0)
        new = TextState(time=state.time + 1, inner=inner)
        is_cut = self.is_truncated(new, params) & ~self.is_terminated(new, params)
        return new, (reward + jnp.where(is_cut, self.rules.cut_reward, 0.0)).astype(jnp.float32)

    def is_terminated(self, state: TextState, params: Any) -> jax.Array:
        """Whether the environment inside says so."""
        return self._told.is_terminated(state.inner, params)

    def is_truncated(self, state: TextState, params: Any) -> jax.Array:
        """Whether there were as many answers, or moves, as an episode may have."""
        is_late = state.time >= params.max_steps_in_episode
        if self.rules.max_turns is not None:
            is_late |= state.time >= self.rules.max_turns
        return is_late | self._told.is_truncated(state.inner, params)

    def observation(self, state: TextState, params: Any) -> jax.Array:
        """The story of the state."""
        return self.template.write(self.story.choose(self.env, state.inner, params))

    def inner_state(self, state: TextState) -> PyTree:
        """The state of the environment inside."""
        return state.inner

    def level_resets(self, params: Any) -> tuple[jax.Array, TextState]:
        """`LevelEnvironment.level_resets` in words."""
        _, states = self.env.level_resets(params)
        times = jnp.zeros(jax.tree.leaves(states)[0].shape[0], jnp.int32)
        new = TextState(time=times, inner=states)
        return jax.vmap(self.observation, (0, None))(new, params), new

    def optimal_returns(self, params: Any, discount: float | jax.Array, pay: Pay | None = None) -> jax.Array:
        """The best return in every level of the bank, `[L]`, as of the environment inside, which has a step per move.

        NaN where an answer has several moves and the discount, which is one per answer, is not 1.
        """
        found = super().optimal_returns(params, discount, pay)
        if self.answers.most_moves == 1:
            return found
        return jnp.where(jnp.asarray(discount) == 1, found, jnp.nan)

    def action_space(self, params: Any = None) -> spaces.Box:
        """Token ids and padding, `[A]`."""
        del params
        return spaces.Box(PADDING, len(self.vocabulary) - 1, (self.max_answer_tokens,), jnp.int32)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Token ids and padding, `[O]`."""
        del params
        return spaces.Box(PADDING, len(self.vocabulary) - 1, (self.template.size,), jnp.int32)

    @property
    def _told(self) -> BatchEnvironment:
        return self.env

    def _longest_move(self) -> int:
        return max(range(len(self.answers.moves)), key=lambda move: len(self.answer((move,))))
