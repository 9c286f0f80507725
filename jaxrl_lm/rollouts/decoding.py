"""The compiled programs of generation: prefill, decoding, and a batch that shrinks as its rows end.

A step costs as much as the rows and cache slots that it computes, whether they are needed or not. So decoding runs in
stages: when half of the rows have ended, the others move into a batch of half the size, and the cache grows as the
completions do. Between stages the host reads two numbers. Each pair of sizes is one compiled program.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm import distributed
from jaxrl_lm.distributed.sharding import (
    DECODING_RULES,
    constrain,
    current_mesh,
    num_batch_parts,
    use_rules,
)
from jaxrl_lm.models import attention
from jaxrl_lm.models.attention import KVCache
from jaxrl_lm.models.causal_lm import CausalLM, encode, unembed
from jaxrl_lm.rollouts.sampling import SamplingConfig, sample
from jaxrl_lm.types import PyTree

FEWEST_ROWS = 8  # a smaller batch takes as long: a step is bound by reading the weights
SLOT_MULTIPLE = 64


class Table(NamedTuple):
    """What is drawn for R rows; T columns.

    Attributes:
        tokens: int32 `[R, T]`.
        log_probs: float32 `[R, T]`.
        values: float32 `[R, T]`.
        mask: 1 at drawn tokens, int32 `[R, T]`.
    """

    tokens: jax.Array
    log_probs: jax.Array
    values: jax.Array
    mask: jax.Array


class State(NamedTuple):
    """Decoding of R of a batch's B rows.

    Attributes:
        step: tokens drawn per row, int32 scalar.
        cache: keys and values of prompts and completions.
        table: what was drawn.
        is_done: whether a row has ended, bool `[R]`.
        rows: the rows' indices in the batch, int32 `[R]`.
        keys: the rows' random keys, `[R]`.
        is_seen: which tokens each row has, bool `[R, V]`; None without a repetition penalty.
    """

    step: jax.Array
    cache: KVCache
    table: Table
    is_done: jax.Array
    rows: jax.Array
    keys: jax.Array
    is_seen: jax.Array | None


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The sizes that decoding passes through.

    Attributes:
        rows: rows of the batch, falling.
        slots: slots of the cache, rising.
        num_parts: parts that the mesh splits the batch into; each has its share of the rows.
    """

    rows: tuple[int, ...]
    slots: tuple[int, ...]
    num_parts: int

    @property
    def is_one(self) -> bool:
        """Whether there is only one stage."""
        return len(self.rows) == len(self.slots) == 1


def plan_stages(batch: int, prompt_length: int, config: SamplingConfig) -> Stages:
    """The stages for B rows with prompts of P columns."""
    mesh = current_mesh()
    num_parts = 1 if mesh is None else num_batch_parts(mesh)
    num_parts = num_parts if batch % num_parts == 0 else 1
    rows = [batch // num_parts]
    while config.stop_tokens and rows[-1] > 1 and (rows[-1] + 1) // 2 * num_parts >= FEWEST_ROWS:
        rows.append((rows[-1] + 1) // 2)
    chunk = SLOT_MULTIPLE * max(1, round(config.max_new_tokens / 4 / SLOT_MULTIPLE))
    first, last = (math.ceil((prompt_length + more) / chunk) for more in (chunk // 2, config.max_new_tokens))
    slots = tuple(chunk * number for number in range(min(first, last), last + 1))
    if len(slots) == 1:
        slots = (prompt_length + config.max_new_tokens,)
    return Stages(rows=tuple(num_parts * each for each in rows), slots=slots, num_parts=num_parts)


def decode_in_stages(
    model: CausalLM,
    params: PyTree,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    config: SamplingConfig,
    stages: Stages,
) -> tuple[Table, jax.Array]:
    """Draw the completions of `len(keys)` rows; the prompts are repeated in order.

    Args:
        model: unrolled or scanned, as its parameters.
        params: as `for_decoding` returns them.
        input_ids: G prompts, `[G, P]`; G divides B.
        attention_mask: their mask, `[G, P]`.
        keys: a key per row, `[B]`.
        config: settings.
        stages: sizes.

    Returns:
        What was drawn, `[B, T]`, and the number of steps.
    """
    rows, slots = list(stages.rows), list(stages.slots)
    prompt_length, num_parts, table = input_ids.shape[1], stages.num_parts, None
    state = _start_program(model, params, input_ids, attention_mask, keys, config, slots[0])
    while True:
        fewest = rows[1] // num_parts if len(rows) > 1 else 0
        until = min(slots[0] - prompt_length, config.max_new_tokens)
        state, num_live = _decode_program(model, params, state, until, fewest, config, num_parts)
        step, num_live = map(int, distributed.on_host((state.step, num_live)))
        if step == config.max_new_tokens or not num_live:
            return (state.table if table is None else _put_back(table, state)), state.step
        if num_live <= fewest:
            while len(rows) > 1 and num_live <= rows[1] // num_parts:
                rows.pop(0)
            state, table = _shrink(state, table, rows[0], num_parts)
        if step == until:
            slots.pop(0)
            state = _grow(state, slots[0])


def start(
    model: CausalLM,
    params: PyTree,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    config: SamplingConfig,
    num_slots: int,
) -> State:
    """Prefill, and draw the first token of each row; arguments as for `decode_in_stages`."""
    (num_prompts, width), batch = input_ids.shape, len(keys)
    cache = model.config.init_cache(num_prompts, width, model.dtype, is_scanned=model.is_scanned)
    logits, values, cache = _run(model, params, input_ids, attention_mask, cache)
    if batch > num_prompts:
        logits, values, input_ids, attention_mask = (
            jnp.repeat(x, batch // num_prompts, axis=0) for x in (logits, values, input_ids, attention_mask)
        )
        cache = attention.repeat_rows(cache, batch // num_prompts)
    is_seen = None if config.repetition_penalty == 1 else _tokens_in(input_ids, attention_mask, logits.shape[1])
    state = State(
        step=jnp.zeros((), jnp.int32),
        cache=attention.with_slots(cache, num_slots),
        table=_empty_table(batch, config),
        is_done=jnp.zeros(batch, bool),
        rows=jnp.arange(batch, dtype=jnp.int32),
        keys=keys,
        is_seen=is_seen,
    )
    return _draw(state, logits, values, config)


def decode_while(
    model: CausalLM,
    params: PyTree,
    state: State,
    until: int | jax.Array,
    fewest: int | jax.Array,
    config: SamplingConfig,
    num_parts: int = 1,
) -> State:
    """Draw tokens up to column `until`, as long as a part of the batch has more than `fewest` rows left."""

    def step(state: State) -> State:
        last = jax.lax.dynamic_slice_in_dim(state.table.tokens, state.step - 1, 1, axis=1)
        # A finished row continues over padding, which does not affect the other rows.
        mask = (~state.is_done)[:, None].astype(jnp.int32)
        logits, values, cache = _run(model, params, last, mask, state.cache)
        return _draw(state._replace(cache=cache), logits, values, config)

    def goes_on(state: State) -> jax.Array:
        return (state.step < until) & (_num_live(state, num_parts) > fewest)

    return jax.lax.while_loop(goes_on, step, state)


def _num_live(state: State, num_parts: int) -> jax.Array:
    """Rows to go on with, in the part of the batch that has most."""
    return jnp.max(jnp.sum(~state.is_done.reshape(num_parts, -1), axis=1))


@partial(jax.jit, static_argnames=("model", "config", "num_slots"))
def _start_program(
    model: CausalLM, params: PyTree, ids: jax.Array, mask: jax.Array, keys: jax.Array, config: Any, num_slots: int
) -> State:
    with use_rules(DECODING_RULES):
        return start(model, params, ids, mask, keys, config, num_slots)


@partial(jax.jit, static_argnames=("model", "config", "num_parts"), donate_argnames=("state",))
def _decode_program(
    model: CausalLM, params: PyTree, state: State, until: Any, fewest: Any, config: SamplingConfig, num_parts: int
) -> tuple[State, jax.Array]:
    with use_rules(DECODING_RULES):
        state = decode_while(model, params, state, until, fewest, config, num_parts)
    return state, _num_live(state, num_parts)


@partial(jax.jit, static_argnames=("num_rows", "num_parts"))
def _shrink(state: State, table: Table | None, num_rows: int, num_parts: int) -> tuple[State, Table]:
    """The rows that have not ended, in a batch of `num_rows`, and the table of all rows so far.

    Each part of the batch keeps its own rows, so none moves between devices.
    """
    is_done = state.is_done.reshape(num_parts, -1)
    chosen = jnp.argsort(is_done, axis=1, stable=True)[:, : num_rows // num_parts]

    def take(leaf: jax.Array, axis: int = 0) -> jax.Array:
        split = leaf.reshape(*leaf.shape[:axis], num_parts, -1, *leaf.shape[axis + 1 :])
        found = jax.vmap(partial(jnp.take, axis=axis), (axis, 0), axis)(split, chosen)
        return found.reshape(*leaf.shape[:axis], num_rows, *leaf.shape[axis + 1 :])

    with use_rules(DECODING_RULES):
        cache = attention.map_rows(state.cache, take)
        others = jax.tree.map(take, state._replace(cache=None, step=None))
        return others._replace(cache=cache, step=state.step), _put_back(table, state)


@partial(jax.jit, static_argnames="num_slots")
def _grow(state: State, num_slots: int) -> State:
    with use_rules(DECODING_RULES):
        return state._replace(cache=attention.with_slots(state.cache, num_slots))


@jax.jit
def _put_back(table: Table | None, state: State) -> Table:
    """The table of all rows, with what these rows drew."""
    if table is None:
        return state.table
    return Table(*(old.at[state.rows].set(new) for old, new in zip(table, state.table, strict=True)))


def _run(
    model: CausalLM, params: PyTree, ids: jax.Array, mask: jax.Array, cache: KVCache
) -> tuple[jax.Array, jax.Array, Any]:
    """Logits `[R, V]` and values `[R]` after the last column, and the cache."""
    output = encode(model, params, ids, mask, cache)
    values = jnp.zeros(len(ids), jnp.float32) if output.values is None else output.values[:, -1]
    logits = constrain(unembed(output.hidden_states[:, -1], model.unembedding(params)), "batch", "vocab")
    return constrain(logits, "cache_batch", None), values, output.cache


def _empty_table(batch: int, config: SamplingConfig) -> Table:
    shape = (batch, config.max_new_tokens)
    return Table(
        tokens=jnp.full(shape, config.pad_token, jnp.int32),
        log_probs=jnp.zeros(shape, jnp.float32),
        values=jnp.zeros(shape, jnp.float32),
        mask=jnp.zeros(shape, jnp.int32),
    )


def _tokens_in(ids: jax.Array, mask: jax.Array, vocab_size: int) -> jax.Array:
    """Whether each row contains each token of the vocabulary, bool `[R, V]`."""
    rows = jnp.arange(ids.shape[0])[:, None]
    return (
        jnp.zeros((ids.shape[0], vocab_size), bool)
        .at[rows, jnp.where(mask > 0, ids, vocab_size)]
        .set(True, mode="drop")
    )


def _draw(state: State, logits: jax.Array, values: jax.Array, config: SamplingConfig) -> State:
    """Sample each row's next token from the logits `[R, V]` and store it with its value `[R]`."""
    keys = jax.vmap(partial(jax.random.fold_in, data=state.step))(state.keys)
    tokens, log_probs = sample(logits, keys, config, state.step < config.min_new_tokens, state.is_seen)
    is_live = ~state.is_done

    def write(column: jax.Array, table: jax.Array, otherwise: int) -> jax.Array:
        kept = jnp.where(is_live, column, otherwise).astype(table.dtype)
        return jax.lax.dynamic_update_slice_in_dim(table, kept[:, None], state.step, axis=1)

    stops = jnp.isin(tokens, jnp.array(config.stop_tokens, jnp.int32))
    stops &= state.step >= config.ignore_stops_before
    old = state.table
    return state._replace(
        step=state.step + 1,
        table=Table(
            tokens=write(tokens, old.tokens, config.pad_token),
            log_probs=write(log_probs, old.log_probs, 0),
            values=write(values, old.values, 0),
            mask=write(jnp.ones_like(tokens), old.mask, 0),
        ),
        is_done=state.is_done | stops,
        is_seen=None if state.is_seen is None else state.is_seen.at[jnp.arange(len(tokens)), tokens].set(True),
    )
