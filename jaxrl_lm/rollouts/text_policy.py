"""A language model that plays: a turn reads an observation and writes an answer.

Turns are of a fixed number of slots, O for the observation (padded on the left) and A for the answer (padded on the
right), so that all games step together in one program. A window of K turns is the model's context. Its keys and values
stay in a cache from turn to turn. When the window is full, its last turns are kept, read again, and the rest is
forgotten. Learning sees the same windows: `evaluate` reads each of them in one forward pass.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm import checks
from jaxrl_lm.core import distributions
from jaxrl_lm.core.records import record
from jaxrl_lm.core.token_log_probs import CHUNK_SIZE, token_log_probs
from jaxrl_lm.distributed.sharding import batch_parts
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.attention import KVCache
from jaxrl_lm.models.causal_lm import CausalLM, CausalLMOutput, encode, unembed
from jaxrl_lm.types import ActionEvaluation, PyTree

PADDING = -1
"""Token id after the end of an answer, and around observations; environments use the same."""


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """What a playing model remembers.

    Attributes:
        turns: most turns of a window, this one included. 1: the model sees the current observation alone.
        kept: turns that stay when a window is full. An episode of up to this many turns is seen whole.
        temperature: divides the logits, in playing and in learning.
    """

    turns: int = 1
    kept: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "turns", prefix="context.")
        checks.at_least(self, 0, "kept", prefix="context.")
        checks.above(self, 0, "temperature", prefix="context.", why="the policy learns from sampled answers")
        if self.kept >= self.turns:
            raise InputError(
                f"context.kept={self.kept} must be below context.turns={self.turns}, or a full window has no space "
                "for a new turn"
            )

    @property
    def new_turns(self) -> int:
        """Turns that a window gets before it is full."""
        return self.turns - self.kept


@record
class Window:
    """The turns that a model remembers, of B games.

    Attributes:
        tokens: of K turns of S = O + A slots, -1 where there is none, int32 `[B, K, S]`.
        is_episode: turns of the running episode, bool `[B, K]`.
        num_turns: turns in the window, the same for all games, int32 `[B]` (one number, with a batch axis).
        keys: of the window's slots, as in `KVCache`.
        values: of the window's slots, as in `KVCache`.
        mask: slots with a token of the running episode, bool `[B, K * S]`.
    """

    tokens: PyTree
    is_episode: PyTree
    num_turns: PyTree
    keys: PyTree
    values: PyTree
    mask: PyTree


@record
class TurnObservations:
    """What `evaluate` reads: T turns of B games.

    Attributes:
        tokens: the observations, -1 for padding, int32 `[B, T, O]`.
        is_first: whether a turn is the first of an episode, bool `[B, T]`; None where the model remembers nothing.
        before: tokens of the turns before the first that the model still sees, int32 `[B, kept, S]`, or None.
        is_episode: which of these belong to the episode that the first turn continues, bool `[B, kept]`, or None.
    """

    tokens: PyTree
    is_first: PyTree = None
    before: PyTree = None
    is_episode: PyTree = None


class Turn(NamedTuple):
    """One answer of each of B games.

    Attributes:
        tokens: of the answers, -1 after the end, int32 `[B, A]`.
        log_probs: of each token, `[B, A]`; 0 after the end.
        values: before each token, `[B, A]`.
        window: what is remembered; None where that is nothing.
    """

    tokens: jax.Array
    log_probs: jax.Array
    values: jax.Array
    window: Window | None


@dataclass(frozen=True, kw_only=True)
class TextPolicy:
    """A language model in a text world; static and hashable.

    Attributes:
        model: with a value head, or without, whose values are then 0.
        context: what it remembers.
        observation_size: O.
        answer_size: A.
        stops: tokens that end an answer.
    """

    model: CausalLM
    context: ContextConfig
    observation_size: int
    answer_size: int
    stops: tuple[int, ...]

    def __post_init__(self) -> None:
        needed, available = self.context.turns * self.turn_size, self.model.config.max_positions
        if needed > available:
            raise InputError(
                f"context.turns={self.context.turns} of up to {self.turn_size} tokens exceed the model's context of "
                f"{available} tokens; choose at most {available // self.turn_size} turns, or a model with a longer one"
            )

    @property
    def turn_size(self) -> int:
        """S = O + A."""
        return self.observation_size + self.answer_size

    def init_window(self, num_games: int) -> Window | None:
        """What is remembered before the first turn: a full window of nothing."""
        if self.context.turns == 1:
            return None
        shape = (num_games, self.context.turns)
        return _window(
            tokens=jnp.full((*shape, self.turn_size), PADDING, jnp.int32),
            is_episode=jnp.zeros(shape, bool),
            num_turns=jnp.full(num_games, self.context.turns, jnp.int32),
            cache=self._empty_cache(num_games),
        )

    def act(
        self,
        params: PyTree,
        observations: jax.Array,
        is_first: jax.Array,
        window: Window | None,
        key: jax.Array | None,
    ) -> Turn:
        """Answer B observations.

        Args:
            params: of the model.
            observations: int32 `[B, O]`.
            is_first: whether an episode begins, bool `[B]`.
            window: what is remembered.
            key: of the samples; None for the most likely tokens.
        """
        window = self._before_turn(params, window, is_first)
        output, cache = self._read(params, observations, window)
        answers, cache = self._write(params, output, cache, key, is_remembered=window is not None)
        if window is not None:
            window = self._after_turn(window, observations, answers.tokens, cache)
        return answers._replace(window=window)

    def value(self, params: PyTree, observations: jax.Array, is_first: jax.Array, window: Window | None) -> jax.Array:
        """V of B observations, `[B]`."""
        window = self._before_turn(params, window, is_first)
        return _values(self._read(params, observations, window)[0])

    def observe(self, observations: jax.Array, is_first: jax.Array, window: Window | None) -> TurnObservations:
        """The inputs of `evaluate`.

        Args:
            observations: of T turns, `[B, T, O]`.
            is_first: `[B, T]`.
            window: before the first of them, full.
        """
        if window is None:
            return TurnObservations(tokens=observations)
        kept = self.context.kept
        return TurnObservations(
            tokens=observations,
            is_first=is_first,
            before=window.tokens[:, self.context.turns - kept :],
            is_episode=window.is_episode[:, self.context.turns - kept :],
        )

    def evaluate(self, params: PyTree, observations: TurnObservations, answers: jax.Array) -> ActionEvaluation:
        """Log-probabilities, entropies and values of given answers, per token, `[B, T, A]`.

        Args:
            params: of the model.
            observations: of T turns, a multiple of `context.new_turns`.
            answers: int32 `[B, T, A]`.
        """
        batch, num_turns, _ = answers.shape
        tokens, segments, positions = self._windows(observations, answers)
        ids = jnp.maximum(tokens, 0)
        output: Any = self.model.apply({"params": params}, ids, None, positions, None, segments, method="encode")
        shape = (len(ids), self.context.turns, self.turn_size)

        def before_answers(leaf: jax.Array) -> jax.Array:
            """Of each new turn, the slots whose next token is one of the answer."""
            leaf = leaf.reshape(*shape, *leaf.shape[2:])[:, self.context.kept :]
            leaf = leaf[:, :, self.observation_size - 1 : self.turn_size - 1]
            return leaf.reshape(len(ids), -1, *leaf.shape[3:])

        chosen = jnp.maximum(answers.reshape(len(ids), -1), 0)
        log_probs, entropies = token_log_probs(
            before_answers(output.hidden_states),
            self.model.unembedding(params),
            chosen,
            temperature=self.context.temperature,
            chunk_size=CHUNK_SIZE * batch_parts(),
        )
        values = jnp.zeros_like(log_probs) if output.values is None else before_answers(output.values)
        found = ActionEvaluation(log_probs=log_probs, entropies=entropies, values=values)
        return jax.tree.map(lambda leaf: leaf.reshape(batch, num_turns, self.answer_size), found)

    def _windows(self, observations: TurnObservations, answers: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens, episodes (0 for padding) and positions of all windows, each `[B * T / new, K * S]`."""
        context = self.context
        turns = jnp.concatenate([_pad_left(observations.tokens), answers], axis=-1)
        batch, num_turns, _ = turns.shape
        if num_turns % context.new_turns:
            raise InputError(
                f"num_steps={num_turns} turns are no multiple of the {context.new_turns} new turns of a window "
                "(context.turns - context.kept); choose a multiple"
            )
        episodes = jnp.ones((batch, num_turns), jnp.int32)
        if observations.before is not None:
            turns = jnp.concatenate([observations.before, turns], axis=1)
            episodes += jnp.cumsum(observations.is_first, axis=1, dtype=jnp.int32)
            episodes = jnp.concatenate([observations.is_episode.astype(jnp.int32), episodes], axis=1)
        first = jnp.arange(0, num_turns, context.new_turns)[:, None] + jnp.arange(context.turns)
        tokens = turns[:, first].reshape(-1, context.turns * self.turn_size)
        segments = jnp.repeat(episodes[:, first].reshape(-1, context.turns), self.turn_size, axis=1)
        segments = jnp.where(tokens >= 0, segments, 0)
        return tokens, segments, _positions(segments)

    def _before_turn(self, params: PyTree, window: Window | None, is_first: jax.Array) -> Window | None:
        """The window with space for a turn, and without the turns of an episode that has ended."""
        if window is None:
            return None
        window = self._roll_if_full(params, window)
        goes_on = ~is_first[:, None]
        return replace(window, is_episode=window.is_episode & goes_on, mask=window.mask & goes_on)

    def _roll_if_full(self, params: PyTree, window: Window) -> Window:
        """Forget all but the kept turns of a full window, and read those again.

        A loop with at most one iteration: under `vmap` over seeds, `cond` would compute both branches.
        """
        is_full = window.num_turns[0] >= self.context.turns
        rolled = jax.lax.while_loop(
            lambda carry: carry[0], lambda carry: (jnp.zeros((), bool), self._roll(params, carry[1])), (is_full, window)
        )
        return rolled[1]

    def _roll(self, params: PyTree, window: Window) -> Window:
        kept, (batch, num_turns, size) = self.context.kept, window.tokens.shape
        tokens = jnp.full_like(window.tokens, PADDING).at[:, :kept].set(window.tokens[:, num_turns - kept :])
        is_episode = jnp.zeros_like(window.is_episode).at[:, :kept].set(window.is_episode[:, num_turns - kept :])
        cache = self._empty_cache(batch)
        if kept:
            read = tokens[:, :kept].reshape(batch, kept * size)
            mask = (read >= 0) & jnp.repeat(is_episode[:, :kept], size, axis=1)
            found = encode(self.model, params, jnp.maximum(read, 0), mask.astype(jnp.int32), cache).cache
            assert found is not None, "a model with a cache returns one"
            cache = found
        return _window(tokens, is_episode, jnp.full_like(window.num_turns, kept), cache)

    def _after_turn(self, window: Window, observations: jax.Array, answers: jax.Array, cache: Any) -> Window:
        turn = jnp.concatenate([_pad_left(observations), answers], axis=1)
        here = window.num_turns[0]
        return _window(
            tokens=jax.lax.dynamic_update_slice_in_dim(window.tokens, turn[:, None], here, axis=1),
            is_episode=jax.lax.dynamic_update_slice_in_dim(
                window.is_episode, jnp.ones((len(turn), 1), bool), here, axis=1
            ),
            num_turns=window.num_turns + 1,
            cache=cache,
        )

    def _empty_cache(self, num_games: int) -> KVCache:
        size = self.context.turns * self.turn_size
        return self.model.config.init_cache(num_games, size, self.model.dtype, is_scanned=self.model.is_scanned)

    def _read(self, params: PyTree, observations: jax.Array, window: Window | None) -> tuple[CausalLMOutput, Any]:
        """The model's output for observations after the window, and the cache."""
        if window is None:
            cache = self._empty_cache(len(observations))
        else:
            length = window.num_turns[0] * self.turn_size
            cache = KVCache(keys=window.keys, values=window.values, mask=window.mask, length=length)
        tokens = _pad_left(observations)
        mask = (tokens >= 0).astype(jnp.int32)
        output = encode(self.model, params, jnp.maximum(tokens, 0), mask, cache)
        return output, output.cache

    def _write(
        self, params: PyTree, output: CausalLMOutput, cache: Any, key: jax.Array | None, *, is_remembered: bool
    ) -> tuple[Turn, Any]:
        """Write answers after what was read; the cache has all of them if they are remembered."""
        batch, size, first = len(output.hidden_states), self.answer_size, cache.length
        unembedding, stops = self.model.unembedding(params), jnp.asarray(self.stops, jnp.int32)

        def draw(number: Any, is_open: jax.Array, output: CausalLMOutput, turn: Turn) -> tuple[Turn, jax.Array]:
            """The turn with one more token in the rows that go on, and which go on after it."""
            logits = unembed(output.hidden_states[:, -1], unembedding) / self.context.temperature
            tokens, log_probs = _draw(key, logits, number)

            def put(table: jax.Array, column: jax.Array, otherwise: int) -> jax.Array:
                column = jnp.where(is_open, column, otherwise).astype(table.dtype)
                return jax.lax.dynamic_update_slice_in_dim(table, column[:, None], number, axis=1)

            columns = (tokens, PADDING), (log_probs, 0), (_values(output), 0)
            new = (put(table, *column) for table, column in zip(turn[:3], columns, strict=True))
            return Turn(*new, window=None), is_open & ~jnp.isin(tokens, stops)

        def read_last(number: Any, turn: Turn, cache: KVCache) -> CausalLMOutput:
            last = jax.lax.dynamic_slice_in_dim(turn.tokens, number - 1, 1, axis=1)
            return encode(self.model, params, jnp.maximum(last, 0), (last >= 0).astype(jnp.int32), cache)

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            number, is_open, turn, cache = carry
            output = read_last(number, turn, cache)
            turn, is_open = draw(number, is_open, output, turn)
            return number + 1, is_open, turn, output.cache

        shape = (batch, size)
        zeros = jnp.zeros(shape, jnp.float32)
        empty = Turn(jnp.full(shape, PADDING, jnp.int32), zeros, zeros, None)
        turn, is_open = draw(0, jnp.ones(batch, bool), output, empty)
        start = (jnp.int32(1), is_open, turn, cache)
        number, _, turn, cache = jax.lax.while_loop(lambda now: (now[0] < size) & jnp.any(now[1]), step, start)
        if is_remembered:
            cache = read_last(number, turn, cache).cache
        # Slots after the longest answer stay empty.
        return turn, replace(cache, length=first + size)


def _window(tokens: jax.Array, is_episode: jax.Array, num_turns: jax.Array, cache: KVCache) -> Window:
    return Window(
        tokens=tokens,
        is_episode=is_episode,
        num_turns=num_turns,
        keys=cache.keys,
        values=cache.values,
        mask=cache.mask,
    )


def _draw(key: jax.Array | None, logits: jax.Array, number: Any) -> tuple[jax.Array, jax.Array]:
    """A token of each row and its log-probability; without a key the most likely one."""
    if key is None:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        tokens = distributions.sample_categorical(jax.random.fold_in(key, number), logits)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return tokens, jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]


def _pad_left(tokens: jax.Array) -> jax.Array:
    """Tokens `[..., O]` that are padded on the right, padded on the left."""
    size = tokens.shape[-1]
    length = jnp.sum(tokens >= 0, axis=-1, keepdims=True)
    column = jnp.arange(size) - (size - length)
    moved = jnp.take_along_axis(tokens, jnp.maximum(column, 0), axis=-1)
    return jnp.where(column >= 0, moved, PADDING)


def _positions(segments: jax.Array) -> jax.Array:
    """Position of each token in its segment `[R, W]`, padding not counted; segments follow one another."""
    is_token = (segments > 0).astype(jnp.int32)
    count = jnp.cumsum(is_token, axis=1) - is_token
    highest = jax.lax.cummax(segments, axis=1)
    before = jnp.pad(highest[:, :-1], ((0, 0), (1, 0)))
    starts = jax.lax.cummax(jnp.where((is_token > 0) & (segments != before), count, 0), axis=1)
    return jnp.where(is_token > 0, count - starts, 0)


def _values(output: CausalLMOutput) -> jax.Array:
    """The value after the last column, `[B]`."""
    if output.values is None:
        return jnp.zeros(len(output.hidden_states), jnp.float32)
    return output.values[:, -1]
