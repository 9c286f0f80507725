"""A language model as a policy: it evaluates what it drew as it drew it; its trajectory is as designed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxrl_lm.core.returns import generalized_advantages
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.rewards.token_rewards import token_rewards, value_mask_of
from jaxrl_lm.rollouts import Generation, SamplingConfig, ended_by_stop, generate
from jaxrl_lm.rollouts.token_policy import (
    answer_log_probs,
    make_evaluate,
    observe,
    rollout_error,
    token_trajectory,
)
from tests.models import tiny

PROMPT, ANSWER = 6, 8
OUTSIDE = 5000  # a pad token that no embedding has
MASK = np.array([[0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], np.int32)


def drawn(model, params, temperature):
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB_SIZE, MASK.shape)
    ids = jnp.asarray(np.where(MASK == 1, ids, OUTSIDE), jnp.int32)
    stops = tuple(range(0, tiny.VOCAB_SIZE, 4))
    config = SamplingConfig(max_new_tokens=ANSWER, temperature=temperature, stop_tokens=stops, pad_token=OUTSIDE)
    generation = generate(model, params, ids, jnp.asarray(MASK), jax.random.key(2), config)
    lengths = np.asarray(generation.response_mask).sum(axis=1)
    assert lengths.min() < ANSWER  # some answers end early, so padding is there to go wrong
    return generation


def check_log_probs(model, params, temperature):
    """Drawing and evaluating agree with the softmax of the logits."""
    generation = drawn(model, params, temperature)
    evaluate = jax.jit(make_evaluate(model, temperature=temperature))
    evaluation = evaluate(params, observe(generation), generation.actions)
    mask = np.asarray(generation.response_mask)
    output = tiny.forward(model, params, generation.sequences, generation.attention_mask)
    log_pi = np.asarray(jax.nn.log_softmax(output.logits[:, PROMPT - 1 : -1] / temperature, axis=-1))
    for row, step in np.argwhere(mask == 1):
        expected = log_pi[row, step, generation.actions[row, step]]
        entropy = -np.sum(np.exp(log_pi[row, step]) * log_pi[row, step])
        np.testing.assert_allclose(generation.log_probs[row, step], expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(evaluation.log_probs[row, step], expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(evaluation.entropies[row, step], entropy, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(evaluation.values, 0)  # there is no value head


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_log_probs_of_drawing_equal_those_of_evaluating_and_of_the_definition(request, name, temperature):
    check_log_probs(*request.getfixturevalue(name), temperature)


@pytest.mark.parametrize("model_type", ["gemma2", "phi", "qwen3_moe"])
def test_log_probs_with_a_softcap_a_bias_and_experts(model_type):
    model, params = tiny.random_model(model_type)
    if model_type == "phi":
        bias = jax.random.normal(jax.random.key(3), (tiny.VOCAB_SIZE,))
        params = {**params, "lm_head": {**params["lm_head"], "bias": bias}}
    check_log_probs(model, params, 0.7)


def test_a_pad_token_outside_the_vocabulary_makes_no_nan(tiny_gpt2):
    model, params = tiny_gpt2
    generation = drawn(model, params, 0.7)
    evaluation = jax.jit(make_evaluate(model))(params, observe(generation), generation.actions)
    assert np.all(np.isfinite(evaluation.log_probs))
    log_probs = answer_log_probs(model, params, generation, 0.7)
    np.testing.assert_allclose(log_probs, generation.log_probs, rtol=0, atol=1e-4)

    def loss(p):
        evaluated = make_evaluate(model)(p, observe(generation), generation.actions)
        return jnp.sum(evaluated.log_probs * generation.response_mask)

    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


def test_values_are_those_of_the_state_before_each_token():
    model, params = tiny.random_model("gpt2", head="value")
    kernel = jax.random.normal(jax.random.key(1), params["value_head"]["kernel"].shape)
    params = {**params, "value_head": {**params["value_head"], "kernel": kernel}}
    generation = drawn(model, params, 1.0)
    evaluation = jax.jit(make_evaluate(model))(params, observe(generation), generation.actions)
    slots = np.arange(PROMPT + ANSWER)
    for step in range(ANSWER):  # V(o_t) may depend on nothing that stands at t or later
        is_before = generation.attention_mask * (slots < PROMPT + step)
        values = tiny.forward(model, params, generation.sequences, is_before).values[:, PROMPT + step - 1]
        is_answer = np.asarray(generation.response_mask)[:, step] == 1
        for found in (evaluation.values, generation.values):
            np.testing.assert_allclose(found[is_answer, step], values[is_answer], rtol=1e-4, atol=1e-4)


def test_values_of_a_network_of_its_own(tiny_gpt2, tiny_llama):
    model, params = tiny_gpt2
    value_model, value_params = tiny.random_model("llama", head="value", seed=4)
    kernel = jax.random.normal(jax.random.key(1), value_params["value_head"]["kernel"].shape)
    value_params = {**value_params, "value_head": {**value_params["value_head"], "kernel": kernel}}
    generation = drawn(model, params, 1.0)
    inputs = (observe(generation), generation.actions)
    evaluate = jax.jit(make_evaluate(model, value_model=value_model))
    evaluation = evaluate({"policy": params, "value": value_params}, *inputs)
    alone = jax.jit(make_evaluate(value_model))(value_params, *inputs)
    np.testing.assert_allclose(evaluation.values, alone.values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        evaluation.log_probs, jax.jit(make_evaluate(model))(params, *inputs).log_probs, rtol=1e-5, atol=1e-5
    )
    assert np.std(evaluation.values) > 0.1

    def value_loss(p):
        return jnp.sum(jnp.square(evaluate(p, *inputs).values))

    gradients = jax.jit(jax.grad(value_loss))({"policy": params, "value": value_params})
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradients["policy"]))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients["value"]))


def test_a_value_head_does_not_change_what_is_drawn(tiny_gpt2):
    model, params = tiny_gpt2
    headed = CausalLM(model.config, head="value")
    head = {"kernel": jnp.ones((model.config.model_size, 1)), "bias": jnp.ones(1)}
    plain = drawn(model, params, 1.0)
    with_head = drawn(headed, {**params, "value_head": head}, 1.0)
    np.testing.assert_array_equal(plain.sequences, with_head.sequences)


def by_hand():
    """Three answers of three, four and one tokens behind a prompt of two."""
    response_mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], jnp.int32)
    actions = jnp.array([[5, 6, 7, 0], [5, 6, 7, 8], [9, 0, 0, 0]], jnp.int32)
    prompt = jnp.array([[1, 2]] * 3, jnp.int32)
    generation = Generation(
        sequences=jnp.concatenate([prompt, actions], axis=1),
        attention_mask=jnp.concatenate([jnp.ones_like(prompt), response_mask], axis=1),
        response_mask=response_mask,
        log_probs=-response_mask.astype(jnp.float32),
        values=jnp.zeros((3, 4)),
        num_steps=jnp.array(4),
    )
    values = jnp.array([[0.1, 0.2, 0.3, 0.4], [1.1, 1.2, 1.3, 1.4], [2.1, 2.2, 2.3, 2.4]])
    return generation, values


def trajectory_by_hand(is_paid_after_end):
    generation, values = by_hand()
    value_mask = value_mask_of(generation.response_mask, is_paid_after_end=is_paid_after_end)
    rewards = jnp.arange(1.0, 13.0).reshape(3, 4)
    log_probs = jnp.full((3, 4), -2.0)
    return token_trajectory(
        generation, rewards, value_mask, log_probs=log_probs, values=values, discount=0.9, trace_decay=0.8
    )


def assert_fields(trajectory, **expected):
    for field, value in expected.items():
        np.testing.assert_allclose(getattr(trajectory, field), value, rtol=1e-6, err_msg=field)


def test_trajectory_paid_at_the_last_token_worked_by_hand():
    trajectory = trajectory_by_hand(is_paid_after_end=False)
    mask = [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert_fields(
        trajectory,
        actions=[[5, 6, 7, 0], [5, 6, 7, 8], [9, 0, 0, 0]],
        mask=mask,
        value_mask=mask,
        log_probs=[[-2, -2, -2, 0], [-2, -2, -2, -2], [-2, 0, 0, 0]],
        values=[[0.1, 0.2, 0.3, 0], [1.1, 1.2, 1.3, 1.4], [2.1, 0, 0, 0]],
        rewards=[[1, 2, 3, 0], [5, 6, 7, 8], [9, 0, 0, 0]],
        discounts=[[0.9, 0.9, 0, 0], [0.9, 0.9, 0.9, 0], [0, 0, 0, 0]],
        traces=[[0.8, 0.8, 0, 0], [0.8, 0.8, 0.8, 0], [0, 0, 0, 0]],
        next_values=[[0.2, 0.3, 0, 0], [1.2, 1.3, 1.4, 0], [0, 0, 0, 0]],
    )


def test_trajectory_paid_one_step_behind_the_last_token_worked_by_hand():
    trajectory = trajectory_by_hand(is_paid_after_end=True)
    assert_fields(
        trajectory,
        mask=[[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]],
        value_mask=[[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]],
        log_probs=[[-2, -2, -2, 0], [-2, -2, -2, -2], [-2, 0, 0, 0]],
        values=[[0.1, 0.2, 0.3, 0.4], [1.1, 1.2, 1.3, 1.4], [2.1, 2.2, 0, 0]],
        rewards=[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]],
        discounts=[[0.9, 0.9, 0.9, 0], [0.9, 0.9, 0.9, 0], [0.9, 0, 0, 0]],
        traces=[[0.8, 0.8, 0.8, 0], [0.8, 0.8, 0.8, 0], [0.8, 0, 0, 0]],
        next_values=[[0.2, 0.3, 0.4, 0], [1.2, 1.3, 1.4, 0], [2.2, 0, 0, 0]],
    )


def test_advantages_of_the_last_two_tokens_worked_by_hand():
    trajectory = trajectory_by_hand(is_paid_after_end=False)
    advantages = generalized_advantages(
        trajectory.rewards,
        trajectory.values,
        trajectory.next_values,
        trajectory.discounts,
        trajectory.traces,
        trajectory.value_mask,
    )
    # The last token: 3 - 0.3; the one before: (2 + 0.9 * 0.3 - 0.2) + 0.9 * 0.8 * 2.7.
    np.testing.assert_allclose(advantages[0, 1:3], [2.07 + 0.72 * 2.7, 2.7], rtol=1e-6)
    np.testing.assert_allclose(advantages[2, 0], 9 - 2.1, rtol=1e-6)


GAPS = [[1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]


def game(mask):
    """Turns of a policy, tokens of the environment between them: every token is read, those of `mask` were chosen."""
    mask = jnp.asarray(mask, jnp.int32)
    num_rows, num_steps = mask.shape
    tokens = jnp.arange(num_rows * (num_steps + 2), dtype=jnp.int32).reshape(num_rows, -1)
    return Generation(
        sequences=tokens,
        attention_mask=jnp.ones_like(tokens),
        response_mask=mask,
        log_probs=jnp.zeros(mask.shape),
        values=jnp.zeros(mask.shape),
        num_steps=jnp.array(num_steps),
    )


@jax.jit
def advantages_with_gaps(mask, scores, log_probs, values):
    """What PPO computes of a game: rewards, trajectory and advantages, `[B, T]`."""
    value_mask = value_mask_of(mask, is_paid_after_end=False)
    rewards, _ = token_rewards(scores, log_probs, jnp.zeros_like(log_probs), mask, value_mask, jnp.float32(0.1))
    trajectory = token_trajectory(
        game(mask), rewards, value_mask, log_probs=log_probs, values=values, discount=0.9, trace_decay=0.8
    )
    return generalized_advantages(
        trajectory.rewards,
        trajectory.values,
        trajectory.next_values,
        trajectory.discounts,
        trajectory.traces,
        trajectory.value_mask,
    )


def advantages_of_the_chosen_tokens_alone(mask, scores, log_probs, values):
    """NumPy: each row without its masked columns, GAE by its definition, and back into the columns."""
    expected = np.zeros(mask.shape)
    for row, kept in enumerate(np.asarray(mask, bool)):
        rewards = -0.1 * log_probs[row, kept]
        if len(rewards):
            rewards[-1] += scores[row]
        v = np.append(values[row, kept], 0.0)
        advantages, following = np.zeros(len(rewards)), 0.0
        for t in reversed(range(len(rewards))):
            following = advantages[t] = rewards[t] + 0.9 * v[t + 1] - v[t] + 0.9 * 0.8 * following
        expected[row, kept] = advantages
    return expected


@given(masks=st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=4, max_size=4))
@example(masks=GAPS[:4])
@example(masks=GAPS[1:])
@settings(max_examples=50)
def test_gaps_change_nothing_for_the_tokens_around_them(masks):
    mask = np.array(masks, np.int32)
    rng = np.random.default_rng(mask.sum())
    scores = rng.normal(size=4).astype(np.float32)
    log_probs, values = rng.normal(size=(2, *mask.shape)).astype(np.float32)
    found = advantages_with_gaps(jnp.asarray(mask), scores, log_probs, values)
    expected = advantages_of_the_chosen_tokens_alone(mask, scores, log_probs, values)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_trajectory_of_two_turns_worked_by_hand():
    generation = game([[1, 1, 0, 0, 1, 1]])
    values = jnp.array([[0.1, 0.2, 9.0, 9.0, 0.5, 0.6]])
    trajectory = token_trajectory(
        generation,
        jnp.array([[0.0, 0.0, 7.0, 7.0, 0.0, 1.0]]),
        generation.response_mask,
        log_probs=jnp.full((1, 6), -2.0),
        values=values,
        discount=0.9,
        trace_decay=0.8,
    )
    assert_fields(
        trajectory,
        rewards=[[0, 0, 0, 0, 0, 1]],
        discounts=[[0.9, 0.9, 0, 0, 0.9, 0]],
        traces=[[0.8, 0.8, 0, 0, 0.8, 0]],
        values=[[0.1, 0.2, 0, 0, 0.5, 0.6]],
        next_values=[[0.2, 0.5, 0, 0, 0.6, 0]],
    )


def test_a_game_ended_by_a_stop_is_known_by_its_last_chosen_token():
    generation = game([[1, 0, 1, 1], [1, 1, 0, 1], [1, 0, 1, 0]])
    stops = SamplingConfig(stop_tokens=(5, 16))  # the last columns of the first row, the third chosen of the last
    np.testing.assert_array_equal(ended_by_stop(generation, stops), [True, False, True])


def test_a_prompt_padded_on_the_right_is_no_observation():
    generation, _ = by_hand()
    bad = replace(generation, attention_mask=generation.attention_mask.at[1, 1].set(0))
    with pytest.raises(InputError, match="attention_mask: row 1 ends with padding"):
        observe(bad)
    with pytest.raises(InputError, match="response_mask: its 6 columns are all that sequences has"):
        observe(replace(generation, response_mask=generation.attention_mask))


def test_actions_that_the_model_cannot_take_are_refused(tiny_gpt2):
    model, params = tiny_gpt2
    generation, _ = by_hand()
    evaluate = make_evaluate(model)
    outside = generation.actions.at[1, 2].set(tiny.VOCAB_SIZE)
    with pytest.raises(InputError, match=r"actions: 101 \(row 1, column 2\) must be"):
        evaluate(params, observe(generation), outside)
    with pytest.raises(InputError, match=r"actions: shape \(3, 6\) must be \[3, T\] with T below 6"):
        evaluate(params, observe(generation), generation.sequences)
    sequences = generation.sequences.at[0, 0].set(-1)
    for call in (
        lambda bad: evaluate(params, observe(bad), bad.actions),
        lambda bad: answer_log_probs(model, params, bad),
    ):
        with pytest.raises(InputError, match=r"input_ids: -1 \(row 0, column 0\)"):
            call(replace(generation, sequences=sequences))


def test_the_disagreement_of_decoding_and_scoring_counts_tokens_that_were_sampled():
    log_probs = jnp.zeros((2, 3))
    generation = Generation(
        sequences=jnp.zeros((2, 4), jnp.int32),
        attention_mask=jnp.ones((2, 4), jnp.int32),
        response_mask=jnp.array([[1, 1, 0], [1, 1, 1]]),
        log_probs=-jnp.log(jnp.array([[1.05, 1.2, 9.0], [0.85, 1.0, 0.95]])),
        values=log_probs,
        num_steps=jnp.int32(3),
    )
    found = rollout_error(log_probs, generation)
    assert found["ratio/rollout_outside"] == pytest.approx(2 / 5)
    assert found["ratio/rollout_max_error"] == pytest.approx(0.2, rel=1e-5)
