"""Packing of completions: placement, the host's forecast of it, and results equal to those of padded rows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.rollouts import Generation, make_evaluate, observe, packed
from jaxrl_lm.rollouts.packing import Packing, choose_packing, pack, place
from tests.models import tiny

PROMPT, ANSWER = 6, 10
WIDTH = PROMPT + ANSWER


def generation_of(prompt_lengths, answer_lengths, seed=0):
    prompt, answer = np.array(prompt_lengths)[:, None], np.array(answer_lengths)[:, None]
    mask = np.concatenate([np.arange(PROMPT) >= PROMPT - prompt, np.arange(ANSWER) < answer], axis=1).astype(np.int32)
    tokens = np.random.default_rng(seed).integers(0, tiny.VOCAB_SIZE, mask.shape)
    zeros = jnp.zeros((len(mask), ANSWER))
    return Generation(
        sequences=jnp.asarray(np.where(mask, tokens, 5000), jnp.int32),
        attention_mask=jnp.asarray(mask),
        response_mask=jnp.asarray(mask[:, PROMPT:]),
        log_probs=zeros,
        values=zeros,
        num_steps=ANSWER,
    )


RAGGED = generation_of([6, 1, 4, 2, 6, 3, 1, 2], [1, 10, 2, 3, 10, 1, 2, 1])


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12), width=st.integers(20, 40))
@settings(max_examples=60, deadline=None)
def test_every_sequence_gets_a_place_of_its_own(lengths, width):
    found = place(jnp.array(lengths), len(lengths), width)
    taken = np.zeros((len(lengths), width), int)
    for row, start, length in zip(*map(np.asarray, found), lengths, strict=True):
        taken[row, start : start + length] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(lengths)


def test_first_fit_decreasing_by_hand():
    rows, starts = place(jnp.array([3, 6, 4, 2, 5]), 3, 10)
    np.testing.assert_array_equal(rows, [1, 0, 0, 1, 1])  # 6 + 4, 5 + 3 + 2
    np.testing.assert_array_equal(starts, [5, 0, 6, 8, 0])
    rows, _ = place(jnp.array([6, 6, 6]), 2, 10)
    np.testing.assert_array_equal(rows, [0, 1, 2])  # the third has found none


@given(seed=st.integers(0, 10_000), num=st.sampled_from([2, 8, 13]), multiple=st.sampled_from([1, 4]))
@settings(max_examples=40, deadline=None)
def test_the_host_foresees_what_the_device_needs(seed, num, multiple):
    rng = np.random.default_rng(seed)
    answered = rng.integers(1, rng.integers(2, 33), num)
    lengths = answered + rng.integers(1, 9, num)
    minibatches = rng.permutation(num)[: num // 2 * 2].reshape(2, -1)
    packing = choose_packing(lengths, answered, 40, [np.arange(num)[None], minibatches], multiple=multiple)
    if packing is None:
        return
    for rows in (np.arange(num), *minibatches):
        num_rows, width = packing.rows(len(rows), multiple), packing.columns(40)
        assert num_rows % multiple == 0
        places = np.asarray(place(jnp.asarray(lengths[rows]), num_rows, width).rows)
        assert places.max() < num_rows
        per_row = np.bincount(places, weights=answered[rows], minlength=num_rows)
        assert per_row.max() <= packing.num_chosen(40)


def test_packing_is_left_out_where_it_saves_nothing():
    full = np.full(8, 32)
    everything = [np.arange(8)[None]]
    assert choose_packing(full, full // 2, 32, everything) is None
    assert choose_packing(full // 2, full // 4, 32, everything) == Packing(1, 4, 4)
    # More than half of a row each: two rows together hold three of them, so three of twice the width hold all.
    assert choose_packing(full * 5 // 8, full // 4, 32, everything) == Packing(2, 5, 3)
    assert choose_packing(full * 5 // 8, full // 4, 32, everything, most_columns=63) is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("packing", [Packing(1, 4, 7), Packing(2, 5, 8)])
def test_packed_rows_give_the_numbers_and_gradients_of_padded_rows(family, packing):
    model, params = tiny.random_model(family, head="value")
    evaluate = make_evaluate(model, temperature=0.7)
    weights = jax.random.normal(jax.random.key(0), (3, *RAGGED.response_mask.shape)) * RAGGED.response_mask

    def loss(params, generation):
        found = evaluate(params, observe(generation), generation.actions)
        masked = tuple(jnp.where(RAGGED.response_mask > 0, x, 0) for x in (found.log_probs, found.entropies))
        return sum(jnp.sum(w * x) for w, x in zip(weights, (*masked, found.values), strict=True)), masked

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, padded), padded_grads = run(params, RAGGED)
    (_, found), grads = run(params, replace(RAGGED, packing=packing))
    for actual, expected in zip(found, padded, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=5e-6, atol=2e-6)
    for actual, expected in zip(*map(jax.tree.leaves, (grads, padded_grads)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=3e-5 * float(jnp.abs(expected).max()))


def test_values_after_the_last_token_are_there_too(tiny_llama):
    model, params = tiny.random_model("llama", head="value")
    evaluate = make_evaluate(model)
    after = np.asarray(RAGGED.response_mask).sum(axis=1)  # the step after the last token; -1 where there is none
    rows = np.flatnonzero(after < ANSWER)
    both = [
        np.asarray(evaluate(params, observe(each), each.actions).values)[rows, after[rows]]
        for each in (RAGGED, replace(RAGGED, packing=Packing(1, 4, 7)))
    ]
    np.testing.assert_allclose(*both, atol=2e-6)


def test_sequences_without_a_row_are_not_a_number():
    model, params = tiny.random_model("llama")
    generation = generation_of([6, 6, 6, 6], [10, 10, 10, 10])
    found = make_evaluate(model)(params, observe(replace(generation, packing=Packing(1, 6, 8))), generation.actions)
    np.testing.assert_array_equal(np.isnan(found.log_probs).all(axis=1), [False, False, False, True])


def test_a_generation_is_packed_by_its_lengths(monkeypatch):
    model, _ = tiny.random_model("llama")
    all_rows = [np.arange(8)[None]]
    # A tiny model computes padding in less time than a packed program takes to compile.
    assert packed(model, RAGGED, jax.device_get(RAGGED), all_rows).packing is None
    monkeypatch.setattr("jaxrl_lm.rollouts.generation.LEAST_WORK", 0)
    found = packed(model, RAGGED, jax.device_get(RAGGED), all_rows)
    layout = pack(RAGGED.sequences, RAGGED.attention_mask, ANSWER, found.packing)
    assert bool(layout.fits.all())
    assert layout.tokens.size < RAGGED.sequences.size
    assert int((layout.segment_ids > 0).sum()) == int(RAGGED.attention_mask.sum())
