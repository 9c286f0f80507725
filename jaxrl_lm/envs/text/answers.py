"""What an agent may answer, as an automaton over tokens that runs on the device.

An answer is one move or several, joined by a separator, up to a line break or an end-of-text token. It is read as text:
however a tokenizer splits `move left`, it is the same move. Spaces around moves and separators do not count. Everything
else is an illegal answer.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxrl_lm import checks
from jaxrl_lm.envs.text.vocabulary import Vocabulary
from jaxrl_lm.errors import InputError

STOP = b"\n"
PADDING = -1
"""Token id after the end of an answer or of an observation."""

_NONE = -1

State = tuple[str, bytes]
"""("move", what is written of a move), ("after", what is written of a separator), or `_ILLEGAL`."""

_START, _ILLEGAL = ("move", b""), ("illegal", b"")


@dataclass(frozen=True, kw_only=True)
class AnswerFormat:
    """How moves are written.

    Attributes:
        moves: text of each move.
        separator: between moves.
        most_moves: of an answer; further ones are left out.
    """

    moves: tuple[str, ...]
    separator: str = "||"
    most_moves: int = 1

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "most_moves")
        for text in (*self.moves, self.separator):
            if not text or text != text.strip() or "\n" in text:
                raise InputError(f"moves, separator: {text!r} must not be empty, nor begin or end with a space")
        for text, other in itertools.permutations(self.moves, 2):
            if text == other or text.startswith((f"{other} ", other + self.separator)):
                raise InputError(f"moves: {text!r} begins with the whole move {other!r}; rename one of them")


class Reading(NamedTuple):
    """What an answer says.

    Attributes:
        moves: numbers of its moves, then -1, int32 `[M]`; all -1 if it is illegal.
        is_legal: whether it is an answer, bool.
    """

    moves: jax.Array
    is_legal: jax.Array


@dataclass(frozen=True, eq=False)
class AnswerReader:
    """The automaton of an `AnswerFormat` for a vocabulary; S states, V tokens.

    Attributes:
        next_states: `[S, V + 1]`; the last state is that of illegal answers, the last token any unknown one.
        moves: the move that a token completes in a state, or -1, `[S, V + 1]`.
        last_moves: the move that the end of the answer completes, or -1, `[S]`.
        is_final: whether an answer may end in a state, `[S]`.
        is_stop: tokens that end an answer, `[V + 1]`.
        most_moves: M.
    """

    next_states: Int[np.ndarray, "S W"]
    moves: Int[np.ndarray, "S W"]
    last_moves: Int[np.ndarray, " S"]
    is_final: Bool[np.ndarray, " S"]
    is_stop: Bool[np.ndarray, " W"]
    most_moves: int

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer."""
        return tuple(np.flatnonzero(self.is_stop).tolist())

    def read(self, tokens: Int[Array, " A"]) -> Reading:
        """Read one answer; tokens after the first stop are not read, and without a stop it is illegal.

        Args:
            tokens: of the answer, padded with `PADDING`.
        """
        next_states, written = jnp.asarray(self.next_states), jnp.asarray(self.moves)
        is_stop = jnp.asarray(self.is_stop)
        start = (jnp.int32(0), jnp.bool_(False), jnp.int32(0), jnp.full(self.most_moves, _NONE, jnp.int32))

        def write(moves: jax.Array, count: jax.Array, move: jax.Array) -> tuple[jax.Array, jax.Array]:
            is_move = move >= 0
            return moves.at[jnp.where(is_move, count, self.most_moves)].set(move, mode="drop"), count + is_move

        def step(carry: tuple[jax.Array, ...], token: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
            state, has_ended, count, moves = carry
            is_read = ~has_ended & (token >= 0)
            token = jnp.clip(token, 0, len(self.is_stop) - 1)
            move = jnp.where(is_read, written[state, token].astype(jnp.int32), _NONE)
            moves, count = write(moves, count, move)
            state = jnp.where(is_read, next_states[state, token].astype(jnp.int32), state)
            return (state, has_ended | (is_read & is_stop[token]), count, moves), None

        (state, has_ended, count, moves), _ = jax.lax.scan(step, start, tokens)
        moves, _ = write(moves, count, jnp.asarray(self.last_moves, jnp.int32)[state])
        is_legal = has_ended & jnp.asarray(self.is_final)[state]
        return Reading(moves=jnp.where(is_legal, moves, _NONE), is_legal=is_legal)


def make_reader(answers: AnswerFormat, vocabulary: Vocabulary) -> AnswerReader:
    """The automaton.

    Raises:
        InputError: the vocabulary cannot express a move, or one token says two moves.
    """
    for text in answers.moves:
        try:
            vocabulary.encode(text)
        except InputError as error:
            raise InputError(f"the move {text!r}: {error}") from error
    states = list(_states(answers))
    # A model may have more tokens than its tokenizer: they say nothing.
    texts = [b"" if text is None else text for text in (*vocabulary.texts, None)]
    is_end = np.isin(np.arange(len(texts)), list(vocabulary.ends))
    is_illegal = np.array([text is None for text in (*vocabulary.texts, None)]) & ~is_end
    next_states, moves = _token_tables(_byte_tables(answers, states), texts)
    next_states[:, is_illegal] = len(states) - 1
    is_stop = is_end | np.array([STOP in text for text in texts])
    ends = [_end(answers, state) for state in states]
    return AnswerReader(
        next_states=next_states,
        moves=moves,
        last_moves=np.array([_NONE if move is None else move for move, _ in ends], np.int16),
        is_final=np.array([is_final for _, is_final in ends]),
        is_stop=is_stop,
        most_moves=answers.most_moves,
    )


class _ByteTables(NamedTuple):
    """The next state and the completed move (or -1) for each state and byte, `[S, 256]`."""

    next_states: np.ndarray
    moves: np.ndarray


def _byte_tables(answers: AnswerFormat, states: list[State]) -> _ByteTables:
    number = {state: index for index, state in enumerate(states)}
    tables = _ByteTables(*(np.full((len(states), 256), _NONE, np.int16) for _ in range(2)))
    for state, value in itertools.product(states, range(256)):
        following, move = _read_byte(answers, state, bytes([value]))
        tables.next_states[number[state], value] = number[following]
        tables.moves[number[state], value] = _NONE if move is None else move
    return tables


def _token_tables(by_byte: _ByteTables, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Next states and completed moves (or -1) of tokens, `[S, W]`; what follows a stop in a token is not read.

    Raises:
        InputError: a token completes two moves.
    """
    read = [text.split(STOP)[0] for text in texts]
    lengths = np.array(list(map(len, read)))
    padded = np.zeros((len(texts), max(1, lengths.max())), np.uint8)
    for row, text in zip(padded, read, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    states = np.repeat(np.arange(len(by_byte.moves), dtype=np.int16)[:, None], len(texts), axis=1)
    moves, counts = np.full(states.shape, _NONE, np.int16), np.zeros(states.shape, np.int16)
    for column in range(padded.shape[1]):
        rows = np.flatnonzero(lengths > column)
        here, values = states[:, rows], padded[rows, column]
        found = by_byte.moves[here, values]
        moves[:, rows] = np.where(found >= 0, found, moves[:, rows])
        counts[:, rows] += found >= 0
        states[:, rows] = by_byte.next_states[here, values]
    twice = np.argwhere((counts > 1) & (states != len(by_byte.moves) - 1))
    if len(twice):
        text = texts[twice[0][1]].decode(errors="replace")
        raise InputError(f"tokenizer: its token {text!r} says two moves; choose another separator")
    return states, moves


def _states(answers: AnswerFormat) -> Iterator[State]:
    beginnings = {text.encode()[:length] for text in answers.moves for length in range(1, len(text.encode()) + 1)}
    yield _START
    yield from (("move", each) for each in sorted(beginnings))
    separator = answers.separator.encode()
    yield from (("after", separator[:length]) for length in range(len(separator)))
    yield _ILLEGAL


def _read_byte(answers: AnswerFormat, state: State, value: bytes) -> tuple[State, int | None]:
    kind, written = state
    if state == _ILLEGAL or (state == _START and value == b" "):
        return state, None
    if kind == "move":
        longer = written + value
        if any(text.encode().startswith(longer) for text in answers.moves):
            return ("move", longer), None
        move = _end(answers, state)[0]
        if move is None:
            return _ILLEGAL, None
        return _after(answers, b"", value), move
    return _after(answers, written, value), None


def _after(answers: AnswerFormat, written: bytes, value: bytes) -> State:
    """The state after a whole move, `written` of a separator, and one more byte."""
    longer, separator = written + value, answers.separator.encode()
    if longer == separator:
        return _START
    if separator.startswith(longer):
        return ("after", longer)
    return ("after", b"") if not written and value == b" " else _ILLEGAL


def _end(answers: AnswerFormat, state: State) -> tuple[int | None, bool]:
    """The move that an end completes in a state, and whether an answer may end there."""
    kind, written = state
    texts = [text.encode() for text in answers.moves]
    if kind == "move" and written in texts:
        return texts.index(written), True
    return None, state == ("after", b"")
