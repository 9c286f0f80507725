"""SFT's loss: packed equals unpacked, targets only, against the whole logits; and it learns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.algorithms.sft import make_sft, sum_token_losses
from jaxrl_lm.algorithms.supervised import AdamWConfig
from jaxrl_lm.data.encoding import EncodedText
from jaxrl_lm.data.packing import PackedRows, pack_sequences, plan_rows
from tests.models import tiny

ROW, MAX_ROWS = 12, 8
KINDS = {"gpt2": {}, "mistral": {"sliding_window": 4, "num_key_value_heads": 2}}


@pytest.fixture(scope="module", params=KINDS)
def language_model(request):
    """A model of learned positions, and one of rotary positions that sees a window only."""
    model, params = tiny.random_model(request.param, **KINDS[request.param])

    def mean_loss(params, rows):
        sums = sum_token_losses(model, params, rows)
        return sums.loss / sums.weight, sums

    return model, params, jax.jit(jax.value_and_grad(mean_loss, has_aux=True))


def make_sequences(lengths: list[int], seed: int) -> list[EncodedText]:
    rng = np.random.default_rng(seed)
    return [
        EncodedText(ids=rng.integers(0, tiny.PAD_TOKEN, n).tolist(), num_prompt_tokens=int(rng.integers(0, n)))
        for n in lengths
    ]


def to_rows(sequences: list[EncodedText], plan: list[list[int]], *, is_loss_on_all: bool = False) -> PackedRows:
    """Rows as planned, and rows of padding up to one number for all tests, so that all share a program."""
    padded = plan + [[]] * (MAX_ROWS - len(plan))
    return pack_sequences(sequences, padded, row_length=ROW, is_loss_on_all=is_loss_on_all)


@given(lengths=st.lists(st.integers(2, ROW), min_size=2, max_size=MAX_ROWS), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_packed_loss_and_gradient_equal_those_of_a_row_each(language_model, lengths, seed):
    _, params, loss_and_grad = language_model
    sequences = make_sequences(lengths, seed)
    packed = to_rows(sequences, plan_rows(np.array(lengths), row_length=ROW, window=MAX_ROWS, seed=seed))
    alone = to_rows(sequences, [[index] for index in range(len(lengths))])
    (loss, sums), grads = loss_and_grad(params, packed)
    (expected, expected_sums), expected_grads = loss_and_grad(params, alone)
    assert float(sums.weight) == float(expected_sums.weight) > 0
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)
    chex.assert_trees_all_close(grads, expected_grads, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_loss_on_all", [True, False], ids=["all", "completion"])
def test_loss_is_the_cross_entropy_of_the_targets_from_whole_logits(language_model, is_loss_on_all):
    model, params, loss_and_grad = language_model
    sequences = make_sequences([5, 9, 2], seed=7)
    rows = to_rows(sequences, [[0], [1], [2]], is_loss_on_all=is_loss_on_all)
    (loss, sums), _ = loss_and_grad(params, rows)
    total, count = 0.0, 0
    for sequence in sequences:
        logits = tiny.forward(model, params, np.array([sequence.ids]), None).logits[0]
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        first = 1 if is_loss_on_all else max(1, sequence.num_prompt_tokens)
        for place in range(first, len(sequence.ids)):
            total -= log_probs[place - 1, sequence.ids[place]]
            count += 1
    assert float(sums.weight) == count
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_prompt_tokens_are_read_but_not_learned(language_model):
    _, params, loss_and_grad = language_model
    rows = to_rows([EncodedText(ids=[3, 4, 5, 6], num_prompt_tokens=3)], [[0]])
    other = to_rows([EncodedText(ids=[9, 4, 5, 6], num_prompt_tokens=3)], [[0]])
    (loss, sums), _ = loss_and_grad(params, rows)
    assert float(sums.weight) == 1
    assert abs(float(loss_and_grad(params, other)[0][0] - loss)) > 1e-4


def test_fine_tuning_learns_its_sequences_by_heart(tiny_gpt2):
    model, params = tiny_gpt2
    algorithm = make_sft(AdamWConfig(learning_rate=1e-2, warmup_fraction=0.1), model, num_updates=40)
    sequences = make_sequences([6, 5, 7, 4], seed=1)
    plan = plan_rows(np.array([6, 5, 7, 4]), row_length=ROW, window=4, seed=0)
    rows = jax.tree.map(lambda x: jnp.asarray(x)[None], to_rows(sequences, plan))
    update, state = jax.jit(algorithm.update), algorithm.init(params)
    losses = []
    for _ in range(40):
        state, metrics = update(state, rows)
        losses.append(float(metrics["loss/total"]))
    assert losses[0] > 2.0
    assert losses[-1] < 0.1
