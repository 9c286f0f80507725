"""Chunked log-probabilities and entropies against the full logits, and the memory that they spare."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.core import token_log_probs as chunked_log_probs
from jaxrl_lm.core.unembedding import Unembedding

B, T, D, V = 3, 7, 16, 37


def problem(seed=0, shape=(B, T), dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*shape, D)), dtype)
    unembedding = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    return hidden, unembedding, jnp.asarray(rng.integers(0, V, shape), jnp.int32)


def token_log_probs(hidden, matrix, tokens, *, bias=None, softcap=None, **options):
    unembedding = Unembedding(matrix=matrix, bias=bias, softcap=softcap)
    return chunked_log_probs.token_log_probs(hidden, unembedding, tokens, **options)


def naive(hidden, unembedding, tokens, temperature=1.0, bias=0.0, softcap=None):
    """The definition: all logits at once."""
    logits = jnp.einsum("...D,VD->...V", hidden, unembedding.astype(hidden.dtype)).astype(jnp.float32) + bias
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    log_pi = jax.nn.log_softmax(logits / temperature, axis=-1)
    chosen = jnp.take_along_axis(log_pi, tokens[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)


@pytest.mark.parametrize("chunk_size", [1, 8, 256])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_equals_the_log_softmax_of_the_full_logits(chunk_size, temperature):
    actual = token_log_probs(*problem(), temperature=temperature, chunk_size=chunk_size)
    for ours, theirs in zip(actual, naive(*problem(), temperature), strict=True):
        assert ours.shape == (B, T)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_equals_loops_in_float64():
    hidden, unembedding, tokens = (np.asarray(x) for x in problem())
    log_probs, entropies = token_log_probs(*problem(), temperature=0.7, chunk_size=4)
    for row in range(B):
        for step in range(T):
            logits = unembedding.astype(np.float64) @ hidden[row, step] / 0.7
            log_pi = logits - np.logaddexp.reduce(logits)
            np.testing.assert_allclose(log_probs[row, step], log_pi[tokens[row, step]], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(entropies[row, step], -np.exp(log_pi) @ log_pi, rtol=1e-5, atol=1e-5)


def test_two_tokens_worked_by_hand():
    # Logits (0, 2 ln 3) at temperature 2 are (0, ln 3): probabilities 1/4 and 3/4.
    hidden = jnp.array([[[1.0]]])
    unembedding = jnp.array([[0.0], [2 * np.log(3)]], jnp.float32)
    log_probs, entropies = token_log_probs(hidden, unembedding, jnp.array([[1]]), temperature=2.0)
    np.testing.assert_allclose(log_probs, [[np.log(3 / 4)]], rtol=1e-6)
    np.testing.assert_allclose(entropies, [[-0.25 * np.log(0.25) - 0.75 * np.log(0.75)]], rtol=1e-6)


def test_equal_logits_have_the_entropy_of_a_fair_die():
    hidden, unembedding, tokens = problem()
    log_probs, entropies = token_log_probs(jnp.zeros_like(hidden), unembedding, tokens)
    np.testing.assert_allclose(log_probs, -np.log(V), rtol=1e-6)
    np.testing.assert_allclose(entropies, np.log(V), rtol=1e-6)


def test_huge_logits_neither_overflow_nor_lose_their_sign():
    hidden, unembedding, tokens = problem()
    log_probs, entropies = token_log_probs(1e4 * hidden, unembedding, tokens, chunk_size=4)
    best = jnp.argmax(hidden @ unembedding.T, axis=-1)
    certain, _ = token_log_probs(1e4 * hidden, unembedding, best, chunk_size=4)
    assert np.all(np.isfinite(log_probs))
    assert np.all(np.isfinite(entropies))
    np.testing.assert_allclose(certain, 0.0, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [4, 21])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_gradients_equal_those_of_the_full_logits(chunk_size, temperature):
    hidden, unembedding, tokens = problem()
    rng = np.random.default_rng(1)
    weights = [jnp.asarray(rng.normal(size=(B, T)), jnp.float32) for _ in range(2)]

    def loss(function):
        def of(hidden, unembedding):
            return sum(jnp.sum(w * x) for w, x in zip(weights, function(hidden, unembedding), strict=True))

        return jax.grad(of, argnums=(0, 1))(hidden, unembedding)

    chunked = loss(lambda h, w: token_log_probs(h, w, tokens, temperature=temperature, chunk_size=chunk_size))
    full = loss(lambda h, w: naive(h, w, tokens, temperature))
    for ours, theirs in zip(chunked, full, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.max(np.abs(theirs)))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("has_bias", [True, False])
def test_bias_and_softcap_in_values_and_gradients(has_bias, softcap):
    hidden, unembedding, tokens = problem()
    rng = np.random.default_rng(2)
    bias = jnp.asarray(rng.normal(size=V), jnp.float32) if has_bias else None
    weights = [jnp.asarray(rng.normal(size=(B, T)), jnp.float32) for _ in range(2)]

    def outputs(function, hidden, matrix, bias, **options):
        given = options | ({} if bias is None else {"bias": bias})
        return function(hidden, matrix, tokens, softcap=softcap, temperature=0.7, **given)

    def grads(function, **options):
        def loss(arguments):
            return sum(jnp.sum(w * x) for w, x in zip(weights, outputs(function, *arguments, **options), strict=True))

        return jax.jit(jax.grad(loss))((hidden, unembedding, bias))

    found, expected = (outputs(f, hidden, unembedding, bias) for f in (token_log_probs, naive))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    plain = naive(hidden, unembedding, tokens, 0.7)[0]
    assert (np.max(np.abs(plain - expected[0])) > 0.1) == (has_bias or softcap is not None)
    chunked, full = grads(token_log_probs, chunk_size=4), grads(naive)
    for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.max(np.abs(theirs)))


def test_softcap_worked_by_hand():
    # tanh(ln 3) = (9 - 1) / (9 + 1) = 4 / 5, so 2 tanh(2 ln 3 / 2) = 8 / 5; the other logit is 0.
    log_probs, _ = token_log_probs(
        jnp.array([[1.0]]), jnp.array([[0.0], [0.0]]), jnp.array([1]), bias=jnp.array([0.0, 2 * np.log(3)]), softcap=2.0
    )
    np.testing.assert_allclose(log_probs, [1.6 - np.log(1 + np.exp(1.6))], rtol=1e-6)


@pytest.mark.parametrize("index", [0, 1], ids=["log_probs", "entropies"])
def test_gradient_of_each_output_alone(index):
    hidden, unembedding, tokens = problem()
    ours = jax.grad(lambda h: jnp.sum(token_log_probs(h, unembedding, tokens, chunk_size=4)[index]))(hidden)
    theirs = jax.grad(lambda h: jnp.sum(naive(h, unembedding, tokens)[index]))(hidden)
    assert np.max(np.abs(theirs)) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.max(np.abs(theirs)))


def test_bfloat16_hidden_states_lose_no_more_than_their_rounding():
    hidden, unembedding, tokens = problem(dtype=jnp.bfloat16)
    log_probs, entropies = token_log_probs(hidden, unembedding, tokens, chunk_size=4)
    assert log_probs.dtype == entropies.dtype == jnp.float32
    # bfloat16 products are exact in float32, so only the rounded inputs differ from the float32 problem.
    rounded = (hidden.astype(jnp.float32), unembedding.astype(jnp.bfloat16).astype(jnp.float32), tokens)
    for ours, exact in zip((log_probs, entropies), naive(*rounded), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
    hidden_grad, unembedding_grad = jax.grad(
        lambda h, w: jnp.sum(token_log_probs(h, w, tokens, chunk_size=4)[0]), argnums=(0, 1)
    )(hidden, unembedding)
    assert hidden_grad.dtype == jnp.bfloat16
    assert unembedding_grad.dtype == jnp.float32
    exact_grads = jax.grad(lambda h, w: jnp.sum(naive(h, w, tokens)[0]), argnums=(0, 1))(*rounded[:2])
    for ours, exact in zip((hidden_grad, unembedding_grad), exact_grads, strict=True):
        scale = np.max(np.abs(exact))
        np.testing.assert_allclose(np.asarray(ours, np.float32), exact, rtol=0, atol=0.02 * scale)


@pytest.mark.parametrize(("num_positions", "chunk_size"), [(1, 1), (1, 9), (5, 3), (6, 3)])
def test_one_axis_of_any_length_and_any_chunk_size(num_positions, chunk_size):
    arguments = problem(seed=num_positions, shape=(num_positions,))
    actual = token_log_probs(*arguments, chunk_size=chunk_size)
    for ours, theirs in zip(actual, naive(*arguments), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_temperature_may_be_traced():
    scaled = jax.jit(lambda temperature: token_log_probs(*problem(), temperature=temperature)[0])(jnp.array(0.7))
    np.testing.assert_allclose(scaled, naive(*problem(), 0.7)[0], rtol=1e-5, atol=1e-5)


def largest_buffer(function):
    """Elements of the largest array in the optimised program of value and gradients of `function`."""
    # B * T * V exceeds every other array of the program by far: inputs have B * T * D and V * D elements.
    hidden = jax.ShapeDtypeStruct((4, 64, 8), jnp.float32)
    unembedding = jax.ShapeDtypeStruct((500, 8), jnp.float32)
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)

    def loss(hidden, unembedding, tokens):
        log_probs, entropies = function(hidden, unembedding, tokens)
        return jnp.sum(log_probs) + jnp.sum(entropies)

    sizes = []
    for program in (loss, jax.grad(loss, argnums=(0, 1))):
        text = jax.jit(program).lower(hidden, unembedding, tokens).compile().as_text()
        assert text is not None
        shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", text)
        assert shapes
        sizes.append(max(int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes))
    return sizes


def test_logits_of_all_positions_exist_neither_forward_nor_backward():
    all_logits = 4 * 64 * 500
    assert all(size >= all_logits for size in largest_buffer(naive))
    chunked = largest_buffer(lambda h, w, t: token_log_probs(h, w, t, chunk_size=32))
    assert all(size <= 32 * 500 for size in chunked)


@pytest.mark.parametrize("token", [-100, 7])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=f"tokens: {token} must be at least 0 and below the vocabulary size 7"):
        token_log_probs(jnp.ones((2, 3)), jnp.ones((7, 3)), jnp.array([0, token]))
