"""Drawing tokens: the frequencies that come out, what truncation leaves, and what the options refuse."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import RepetitionPenaltyLogitsProcessor

from jaxrl_lm.errors import InputError
from jaxrl_lm.rollouts import SamplingConfig
from jaxrl_lm.rollouts.sampling import penalize_repetition, sample, sample_categorical

NUM_DRAWS = 100_000
LATE = jnp.array(False)


def keys(seed=0, count=NUM_DRAWS):
    return jax.random.split(jax.random.key(seed), count)


def draw(logits, seed=0, **options):
    """Tokens and log-probs of many draws from the same logits."""
    config = SamplingConfig(**options)

    # The logits are an argument: XLA would fold the sums of a constant, row by row, at compile time.
    @jax.jit
    def chunk(chunk_keys, logits):
        return sample(jnp.broadcast_to(logits, (len(chunk_keys), len(logits))), chunk_keys, config, LATE)

    parts = [chunk(part, logits) for part in jnp.split(keys(seed), 10)]
    return tuple(np.concatenate([part[i] for part in parts]) for i in range(2))


def assert_frequencies(tokens, probs):
    """A chi-square test of the tokens' counts; tokens of probability 0 never come."""
    counts = np.bincount(tokens, minlength=len(probs))
    assert len(counts) == len(probs)
    assert np.all(counts[probs == 0] == 0)
    expected = probs / probs.sum() * len(tokens)
    is_common = expected >= 5
    observed, wanted = counts[is_common], expected[is_common]
    if not is_common.all():
        observed = np.append(observed, counts[~is_common].sum())
        wanted = np.append(wanted, expected[~is_common].sum())
    kept = wanted > 0
    if kept.sum() > 1:
        assert stats.chisquare(observed[kept], wanted[kept] / wanted[kept].sum() * len(tokens)).pvalue > 1e-3


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


@pytest.mark.parametrize("vocab_size", [2, 256, 700])
def test_frequencies_are_those_of_the_softmax(vocab_size):
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(size=vocab_size).astype(np.float32) + 30  # a shift changes nothing
    tokens, _ = draw(jnp.asarray(logits), temperature=1.0)
    assert_frequencies(tokens, softmax(logits))


def test_forbidden_tokens_are_never_drawn_wherever_they_stand():
    logits = np.random.default_rng(0).normal(size=600).astype(np.float32)
    logits[[0, 1, 255, 256, 599]] = -np.inf
    logits[300:560] = -np.inf
    tokens, _ = draw(jnp.asarray(logits))
    assert_frequencies(tokens, softmax(logits))


@pytest.mark.parametrize("only", [0, 255, 256, 299])
def test_the_one_token_left_is_always_drawn(only):
    logits = jnp.full(300, -jnp.inf).at[only].set(-3.0)
    tokens = sample_categorical(keys(count=500), jnp.broadcast_to(logits, (500, 300)))
    np.testing.assert_array_equal(tokens, only)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits_in_draws_and_log_probs(temperature):
    logits = np.random.default_rng(1).normal(size=20).astype(np.float32)
    tokens, log_probs = draw(jnp.asarray(logits), temperature=temperature)
    probs = softmax(logits / temperature)
    assert_frequencies(tokens, probs)
    np.testing.assert_allclose(log_probs, np.log(probs)[tokens], rtol=1e-5, atol=1e-5)


def test_temperature_zero_takes_the_likeliest_with_its_log_prob_at_temperature_one():
    logits = np.random.default_rng(2).normal(size=(4, 300)).astype(np.float32)
    tokens, log_probs = sample(jnp.asarray(logits), keys(count=4), SamplingConfig(temperature=0.0), LATE)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(log_probs, [np.log(softmax(row).max()) for row in logits], rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_top_k_leaves_the_k_likeliest_renormalised(top_k):
    logits = np.random.default_rng(3).normal(size=20).astype(np.float32)
    probs = softmax(logits)
    allowed = np.where(probs >= np.sort(probs)[-min(top_k, 20)], probs, 0)
    tokens, log_probs = draw(jnp.asarray(logits), top_k=top_k)
    assert_frequencies(tokens, allowed)
    # The log-probabilities are the model's, not those of the truncated distribution.
    np.testing.assert_allclose(log_probs, np.log(probs)[tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)])
def test_top_p_leaves_the_smallest_set_that_reaches_p(top_p, kept):
    probs = np.array([0.15, 0.5, 0.05, 0.3])  # likeliest first: .5, .8, .95, 1
    tokens, log_probs = draw(jnp.log(jnp.asarray(probs, jnp.float32)), top_p=top_p)
    assert_frequencies(tokens, np.where(probs >= np.sort(probs)[-kept], probs, 0))
    np.testing.assert_allclose(log_probs, np.log(probs)[tokens], rtol=1e-5, atol=1e-5)


def test_top_p_is_taken_of_what_top_k_left():
    probs = np.array([0.4, 0.3, 0.2, 0.1])
    # Of the first two, renormalised, the likeliest alone has 4/7 > .55.
    tokens, _ = draw(jnp.log(jnp.asarray(probs, jnp.float32)), top_k=2, top_p=0.55)
    np.testing.assert_array_equal(tokens, 0)


def test_stop_tokens_are_forbidden_only_while_it_is_early():
    probs = np.array([0.2, 0.5, 0.2, 0.1])
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probs, jnp.float32)), (2000, 4))
    config = SamplingConfig(min_new_tokens=2, stop_tokens=(1, 3))
    early, log_probs = sample(logits, keys(count=2000), config, jnp.array(True))
    assert set(np.unique(early)) == {0, 2}
    np.testing.assert_allclose(log_probs, np.log(0.2), rtol=1e-5)
    late, _ = sample(logits, keys(count=2000), config, LATE)
    assert_frequencies(np.asarray(late), probs)


def test_a_row_draws_the_same_in_another_batch():
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(6, 40)), jnp.float32)
    row_keys = keys(count=6)
    together = sample_categorical(row_keys, logits)
    alone = [sample_categorical(row_keys[i : i + 1], logits[i : i + 1])[0] for i in range(6)]
    np.testing.assert_array_equal(together, alone)
    assert len(set(np.asarray(sample_categorical(row_keys, logits[:1].repeat(6, axis=0))))) > 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_new_tokens", -1),
        ("repetition_penalty", 0.0),
        ("top_k", 2.5),
        ("max_new_tokens", 8.0),
        ("min_new_tokens", True),
        ("temperature", "hot"),
        ("stop_tokens", (1, -1)),
        ("stop_tokens", "2"),
        ("stop_tokens", [2.5]),
        ("suppress_tokens", {"a": 1}),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=re.escape(f"{field}={value!r} must be")):
        SamplingConfig(**{field: value})


@pytest.mark.parametrize(
    ("given", "kept"), [(None, ()), (2, (2,)), ([2, 3], (2, 3)), (np.array([2, 3]), (2, 3)), (np.int64(2), (2,))]
)
@pytest.mark.usefixtures("as_users_call")
def test_token_ids_may_be_given_in_any_form(given, kept):
    config = SamplingConfig(stop_tokens=given, suppress_tokens=given)
    assert config.stop_tokens == config.suppress_tokens == kept
    assert hash(config) == hash(SamplingConfig(stop_tokens=kept, suppress_tokens=kept))


@pytest.mark.usefixtures("as_users_call")
def test_numbers_of_numpy_and_jax_are_as_good_as_pythons():
    config = SamplingConfig(max_new_tokens=np.int64(4), temperature=jnp.float32(0.5), top_k=np.int32(3))
    assert config == SamplingConfig(max_new_tokens=4, temperature=0.5, top_k=3)
    assert hash(config) == hash(SamplingConfig(max_new_tokens=4, temperature=0.5, top_k=3))


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_hugging_faces(penalty):
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(3, 30)).astype(np.float32)
    ids = rng.integers(0, 30, (3, 12))
    is_seen = np.zeros((3, 30), bool)
    is_seen[np.arange(3)[:, None], ids] = True
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(ids), torch.tensor(logits)).numpy()
    found = penalize_repetition(jnp.asarray(logits), jnp.asarray(is_seen), penalty)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_penalty_changes_what_is_drawn_and_not_the_log_prob():
    probs = np.array([0.5, 0.3, 0.2])
    logits = jnp.log(jnp.asarray(probs, jnp.float32))[None]
    is_seen = jnp.array([[True, False, False]])
    # log(.5) * 2 = log(.25) is below log(.3).
    config = SamplingConfig(temperature=0.0, repetition_penalty=2.0)
    token, log_prob = sample(logits, keys(count=1), config, LATE, is_seen)
    assert int(token[0]) == 1
    np.testing.assert_allclose(log_prob, np.log(0.3), rtol=1e-5)


def test_suppressed_tokens_are_never_drawn():
    probs = np.array([0.2, 0.5, 0.2, 0.1])
    tokens, log_probs = draw(jnp.log(jnp.asarray(probs, jnp.float32)), suppress_tokens=(1, 3))
    assert_frequencies(tokens, np.where([True, False, True, False], probs, 0))
    np.testing.assert_allclose(log_probs, np.log(0.2), rtol=1e-5)
