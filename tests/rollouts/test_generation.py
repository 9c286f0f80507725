"""Generation: what a row may depend on, where answers end, and how often the program is traced."""

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import RepetitionPenaltyLogitsProcessor

from jaxrl_lm.core import kl
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM, stack_layers
from jaxrl_lm.models.lora import quantise_projections
from jaxrl_lm.rollouts import SamplingConfig, generate
from jaxrl_lm.rollouts.generation import _check_prompts, generation_program
from jaxrl_lm.rollouts.token_policy import answer_log_probs
from tests.models import tiny

BATCH, PROMPT, ANSWER = 4, 6, 8
OUTSIDE = 5000  # a pad token that no embedding has
STOPS = tuple(range(0, tiny.VOCAB_SIZE, 5))
CONFIG = SamplingConfig(max_new_tokens=ANSWER, temperature=0.7, stop_tokens=STOPS, pad_token=OUTSIDE)
GREEDY = replace(CONFIG, temperature=0.0, stop_tokens=())


def prompts(lengths=(6, 4, 2, 1), width=PROMPT, seed=0):
    """Left-padded prompts; a row's tokens depend on the seed and its place alone, not on the width."""
    tokens = np.random.default_rng(seed).integers(0, tiny.VOCAB_SIZE, (len(lengths), 64))
    mask = (np.arange(width) >= width - np.array(lengths)[:, None]).astype(np.int32)
    ids = np.where(mask == 1, tokens[:, 64 - width :], OUTSIDE).astype(np.int32)
    return jnp.asarray(ids), jnp.asarray(mask)


def answers(generation):
    return np.asarray(generation.actions)


def check_ends(generation, config):
    """Masks, padding, log-probs and the number of steps, from the tokens alone, row by row."""
    lengths = []
    for row, tokens in enumerate(answers(generation)):
        length = config.max_new_tokens
        for step, token in enumerate(tokens):
            if token in config.stop_tokens and step >= config.ignore_stops_before:
                length = step + 1
                break
        lengths.append(length)
        is_answer = np.arange(config.max_new_tokens) < length
        np.testing.assert_array_equal(generation.response_mask[row], is_answer)
        assert np.all(tokens[~is_answer] == config.pad_token)
        assert np.all(tokens[is_answer] < tiny.VOCAB_SIZE)
        log_probs = np.asarray(generation.log_probs)[row]
        assert np.all(log_probs[~is_answer] == 0)
        assert np.all(log_probs[is_answer] < 0)
    assert int(generation.num_steps) == max(lengths)
    return lengths


@given(
    seed=st.integers(0, 2**31 - 1),
    lengths=st.lists(st.integers(1, PROMPT), min_size=BATCH, max_size=BATCH),
    config=st.sampled_from(
        [CONFIG, replace(CONFIG, ignore_stops_before=4), replace(CONFIG, min_new_tokens=3)],
    ),
)
@settings(max_examples=40, deadline=None)
def test_answers_end_at_their_first_stop_and_padding_follows(tiny_gpt2, seed, lengths, config):
    ids, mask = prompts(lengths, seed=seed)
    generation = generate(*tiny_gpt2, ids, mask, jax.random.key(seed), config)
    ends = check_ends(generation, config)
    np.testing.assert_array_equal(generation.sequences[:, :PROMPT], ids)
    np.testing.assert_array_equal(generation.attention_mask, np.concatenate([mask, generation.response_mask], axis=1))
    drawn_early = answers(generation)[:, : config.min_new_tokens]
    assert not np.isin(drawn_early, STOPS).any()
    assert min(ends) > max(config.min_new_tokens, config.ignore_stops_before)


def test_decoding_stops_as_soon_as_every_row_is_done(tiny_gpt2):
    everything = replace(CONFIG, stop_tokens=tuple(range(tiny.VOCAB_SIZE)), ignore_stops_before=2)
    generation = generate(*tiny_gpt2, *prompts(), jax.random.key(0), everything)
    assert int(generation.num_steps) == 3
    assert check_ends(generation, everything) == [3] * BATCH


def test_ignored_stops_are_drawn_as_any_other_token(tiny_gpt2):
    config = replace(CONFIG, ignore_stops_before=4)
    early = np.concatenate(
        [answers(generate(*tiny_gpt2, *prompts(seed=seed), jax.random.key(seed), config))[:, :4] for seed in range(10)]
    )
    assert np.isin(early, STOPS).sum() > 5


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_greedy_takes_the_argmax_of_the_model_without_a_cache(request, name):
    model, params = request.getfixturevalue(name)
    generation = generate(model, params, *prompts(), jax.random.key(0), GREEDY)
    output = tiny.forward(model, params, generation.sequences, generation.attention_mask)
    logits = np.asarray(output.logits)[:, PROMPT - 1 : -1]
    np.testing.assert_array_equal(answers(generation), logits.argmax(axis=-1))
    expected = np.asarray(jax.nn.log_softmax(logits, axis=-1)).max(axis=-1)
    np.testing.assert_allclose(generation.log_probs, expected, rtol=1e-4, atol=1e-4)
    again = generate(model, params, *prompts(), jax.random.key(1), GREEDY)
    np.testing.assert_array_equal(generation.sequences, again.sequences)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_a_row_is_the_same_alone_in_another_batch_and_at_another_width(request, name):
    model_and_params = request.getfixturevalue(name)
    key = jax.random.key(5)
    row_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(BATCH))
    ids, mask = prompts()
    together = generate(*model_and_params, ids, mask, key, CONFIG)
    with_row_keys = generate(*model_and_params, ids, mask, row_keys, CONFIG)
    np.testing.assert_array_equal(together.sequences, with_row_keys.sequences)
    turned = generate(*model_and_params, ids[::-1], mask[::-1], row_keys[::-1], CONFIG)
    alone = generate(*model_and_params, ids[1:2], mask[1:2], row_keys[1:2], CONFIG)
    wide = generate(*model_and_params, *prompts(width=PROMPT + 5), key, CONFIG)
    for other, rows in [(turned, slice(None, None, -1)), (alone, slice(1, 2)), (wide, slice(None))]:
        np.testing.assert_array_equal(answers(other), answers(together)[rows])
        np.testing.assert_array_equal(other.response_mask, together.response_mask[rows])
        np.testing.assert_allclose(other.log_probs, together.log_probs[rows], rtol=1e-4, atol=1e-4)


def test_rows_keys_and_steps_draw_different_numbers(tiny_gpt2):
    flat = jax.tree.map(jnp.zeros_like, tiny_gpt2[1])  # every token is as likely as any other
    ids, mask = (jnp.repeat(x[:1], BATCH, axis=0) for x in prompts())
    config = replace(CONFIG, stop_tokens=())
    first, second = (answers(generate(tiny_gpt2[0], flat, ids, mask, jax.random.key(seed), config)) for seed in (0, 1))
    assert np.mean(first == second) < 0.2
    assert np.mean(first[0] == first[1]) < 0.5
    assert all(len(set(row)) > ANSWER // 2 for row in first)


def num_traces() -> int:
    """Programs that `generate` was compiled to so far."""
    return getattr(generation_program, "_cache_size")()  # noqa: B009 jit's type does not declare it


def test_one_trace_serves_other_prompts_keys_and_weights(tiny_gpt2):
    model, params = tiny_gpt2
    config = replace(CONFIG, pad_token=99)  # a configuration of this test's own
    before = num_traces()
    for seed in range(3):
        scaled = jax.tree.map(lambda leaf, seed=seed: leaf * (1 + seed), params)
        generate(model, scaled, *prompts(seed=seed), jax.random.key(seed), config)
    generate(CausalLM(model.config), params, *prompts(), jax.random.key(9), replace(config))  # equal, not same
    assert num_traces() == before + 1


ONE_TOKEN = SamplingConfig(max_new_tokens=1)
NUM_SAMPLES = 4096


def sampled_and_exact(model_and_params, reference_params):
    """Answers of one token to one prompt, many times, and log pi and log ref of every token."""
    model, params = model_and_params
    ids, mask = prompts((3,), width=5)
    many = (jnp.repeat(x, NUM_SAMPLES, axis=0) for x in (ids, mask))
    generation = generate(model, params, *many, jax.random.key(11), ONE_TOKEN)
    log_pi, log_ref = (
        np.asarray(jax.nn.log_softmax(tiny.forward(model, p, ids, mask).logits[0, -1]), np.float64)
        for p in (params, reference_params)
    )
    return generation, log_pi, log_ref


@pytest.fixture(scope="module")
def perturbed(tiny_llama):
    leaves, tree = jax.tree.flatten(tiny_llama[1])
    noise = jax.random.split(jax.random.key(8), len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, noise, strict=True)]
    return jax.tree.unflatten(tree, moved)


def test_drawn_tokens_have_the_frequencies_of_the_model(tiny_llama, perturbed):
    generation, log_pi, _ = sampled_and_exact(tiny_llama, perturbed)
    expected = np.exp(log_pi) * NUM_SAMPLES
    counts = np.bincount(answers(generation)[:, 0], minlength=tiny.VOCAB_SIZE)
    is_common = expected >= 5
    observed = np.append(counts[is_common], counts[~is_common].sum())
    wanted = np.append(expected[is_common], expected[~is_common].sum())
    assert stats.chisquare(observed, wanted * NUM_SAMPLES / wanted.sum()).pvalue > 1e-3


def test_sampled_kl_is_the_exact_kl_in_expectation(tiny_llama, perturbed):
    generation, log_pi, log_ref = sampled_and_exact(tiny_llama, perturbed)
    exact = np.sum(np.exp(log_pi) * (log_pi - log_ref))
    reference = answer_log_probs(tiny_llama[0], perturbed, generation)
    estimates = np.asarray(kl.k1(generation.log_probs, reference))[:, 0]
    standard_error = np.std(estimates) / np.sqrt(NUM_SAMPLES)
    assert exact > 10 * standard_error  # else the test could not tell it from 0
    assert abs(np.mean(estimates) - exact) < 4 * standard_error
    same = answer_log_probs(*tiny_llama, generation)
    np.testing.assert_allclose(kl.k1(generation.log_probs, same), 0, atol=1e-4)


RIGHT_PADDED = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": RIGHT_PADDED}, "attention_mask: row 1 ends with padding; pad prompts on the left"),
        ({"attention_mask": RIGHT_PADDED[:, ::-1] * [[0], [1]]}, "attention_mask: row 0 has no token"),
        ({"attention_mask": np.array([[1] * 6, [1, 0, 1, 1, 1, 1]])}, "row 1 has padding between its tokens"),
        ({"attention_mask": np.full((2, 6), 2)}, "attention_mask: 2 must be 1"),
        ({"attention_mask": np.ones((2, 5), int)}, r"attention_mask: shape \(2, 5\) must equal that of input_ids"),
        ({"input_ids": np.full((2, 6), tiny.VOCAB_SIZE)}, rf"input_ids: {tiny.VOCAB_SIZE} \(row 0, column 0\) must be"),
        ({"input_ids": np.full((2, 6), -1)}, "input_ids: -1 .* must be at least 0"),
        ({"input_ids": np.full((2, 6), 3.0)}, "input_ids: dtype float32 must be an integer type"),
        ({"input_ids": np.full(6, 3)}, r"input_ids: shape \(6,\) must be \[B, T\]"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "key: .*must be one jax.random.key.*or 2 of them"),
        ({"key": jax.random.PRNGKey(0)}, r"key: uint32\[2\] must be one jax.random.key"),
        ({"config": replace(GREEDY, stop_tokens=(tiny.VOCAB_SIZE,))}, r"stop_tokens=\(101,\) must be below"),
        ({"config": replace(GREEDY, max_new_tokens=60)}, "exceed the model's context"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_what_would_be_answered_wrongly_is_refused_before_tracing(tiny_gpt2, changes, message):
    arguments = {
        "input_ids": np.full((2, 6), 3),
        "attention_mask": np.ones((2, 6), np.int32),
        "key": jax.random.key(0),
        "config": GREEDY,
    }
    before = num_traces()
    with pytest.raises(InputError, match=message):
        generate(*tiny_gpt2, **{**arguments, **changes})
    assert num_traces() == before


@pytest.mark.parametrize("is_scanned", [False, True])
def test_int8_weights_sample_from_the_rounded_model(is_scanned):
    model, params = tiny.random_model("llama")
    rounded = quantise_projections(model, params, "int8")
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("int8"), jnp.dtype("float32")}
    given = (model.clone(is_scanned=True), stack_layers(params, model.family.layers)) if is_scanned else (model, params)
    generation = generate(*given, *prompts(), jax.random.key(0), replace(CONFIG, weights="int8"))
    expected = answer_log_probs(model, rounded, generation, CONFIG.temperature)
    np.testing.assert_allclose(generation.log_probs, expected, atol=1e-5)
    exact = answer_log_probs(model, params, generation, CONFIG.temperature)
    assert 1e-4 < float(jnp.max(jnp.abs(generation.log_probs - exact))) < 0.5


def test_the_checks_of_a_batch_take_under_a_millisecond(tiny_gpt2):
    ids, mask = prompts((64,) * 16, width=64)
    config = replace(GREEDY, max_new_tokens=1)
    model = CausalLM(replace(tiny_gpt2[0].config, max_positions=80))

    def seconds() -> float:
        started = time.perf_counter()
        _check_prompts(model, ids, mask, KEY, config, 1)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(20)) < 1e-3


KEY = jax.random.key(0)


def test_inside_jit_nothing_is_checked_and_nothing_is_different(tiny_gpt2):
    within = jax.jit(lambda params, ids, mask: generate(tiny_gpt2[0], params, ids, mask, KEY, GREEDY).sequences)
    ids, mask = prompts()
    np.testing.assert_array_equal(
        within(tiny_gpt2[1], ids, mask), generate(*tiny_gpt2, ids, mask, KEY, GREEDY).sequences
    )


def test_repetition_penalty_reads_prompt_and_drawn_tokens_as_hugging_face_does(tiny_gpt2):
    config = replace(GREEDY, repetition_penalty=1.5)
    ids, mask = prompts()
    generation = generate(*tiny_gpt2, ids, mask, KEY, config)
    output = tiny.forward(*tiny_gpt2, generation.sequences, generation.attention_mask)
    logits = np.asarray(output.logits)[:, PROMPT - 1 : -1]
    penalize = RepetitionPenaltyLogitsProcessor(1.5)
    for row, tokens in enumerate(answers(generation)):
        for step in range(ANSWER):
            seen = np.append(np.asarray(ids[row])[np.asarray(mask[row]) == 1], tokens[:step])
            scores = penalize(torch.tensor(seen[None]).long(), torch.tensor(logits[row, step][None]))
            assert tokens[step] == int(scores.argmax())
    assert not np.array_equal(answers(generation), answers(generate(*tiny_gpt2, ids, mask, KEY, GREEDY)))
