"""Log-probabilities and entropies of chosen tokens from hidden states, without storing all logits.

The logits of N positions and V tokens are N x V: for a batch of long completions they need more memory than the model.
Here they exist for one chunk of positions at a time, also in the backward pass, which recomputes them from the saved
log-sum-exp. A chunk has columns of all rows, so that rows that are split over devices stay where they are.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxrl_lm.core.unembedding import Unembedding

CHUNK_SIZE = 256  # positions; a chunk of 256 over a vocabulary of 50,000 takes 50 MB


def token_log_probs(
    hidden_states: Float[Array, "*B T D"],
    unembedding: Unembedding,
    tokens: Int[Array, "*B T"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """log pi(token) and the entropy of pi = softmax(logits / temperature).

    Args:
        hidden_states: hidden state of the position before each token.
        unembedding: from hidden states to logits.
        tokens: the chosen tokens, in [0, V).
        temperature: divides the logits; positive, without gradient.
        chunk_size: positions per chunk, at least one of each row.

    Returns:
        log-probabilities and entropies, float32, nats.

    Raises:
        ValueError: a token is outside the vocabulary. Values are checked only outside `jit`.
    """
    _check_tokens(tokens, unembedding.matrix.shape[0])
    num_rows, length = int(np.prod(tokens.shape[:-1])), tokens.shape[-1]
    width = max(1, min(chunk_size // max(num_rows, 1), length))

    def split(x: Any) -> Any:
        """`[*B, T, ...]` as chunks `[C, B, S, ...]`, padded at the end."""
        rows = x.reshape(num_rows, length, *x.shape[tokens.ndim :])
        padded = jnp.pad(rows, ((0, 0), (0, -length % width), *((0, 0) for _ in rows.shape[2:])))
        return jnp.moveaxis(padded.reshape(num_rows, -1, width, *rows.shape[2:]), 1, 0)

    inverse_temperature = 1.0 / jnp.asarray(temperature, jnp.float32)
    outputs = _chunked(split(hidden_states), unembedding, split(tokens), inverse_temperature)
    log_probs, entropies = (
        jnp.moveaxis(x, 0, 1).reshape(num_rows, -1)[:, :length].reshape(tokens.shape) for x in outputs
    )
    return log_probs, entropies


def _check_tokens(tokens: Any, vocab_size: int) -> None:
    """Refuse tokens outside the vocabulary: a negative one, such as -100, would index from its end."""
    if isinstance(tokens, Tracer) or not getattr(tokens, "is_fully_addressable", True):
        return
    values = np.asarray(tokens)
    is_outside = (values < 0) | (values >= vocab_size)
    if is_outside.any():
        raise ValueError(
            f"tokens: {values[is_outside][0]} must be at least 0 and below the vocabulary size {vocab_size}; "
            "put 0 where a token is masked"
        )


@jax.custom_vjp
def _chunked(chunks: Any, unembedding: Any, tokens: Any, inverse_temperature: Any) -> tuple[Any, Any]:
    """Log-probs and entropies `[C, B, S]` of `chunks` `[C, B, S, D]`."""
    return _forward(chunks, unembedding, tokens, inverse_temperature)[0]


def _logits(hidden: Any, unembedding: Unembedding) -> Any:
    kernel = unembedding.matrix.astype(hidden.dtype)
    return unembedding.finish(jnp.einsum("BSD,VD->BSV", hidden, kernel, preferred_element_type=jnp.float32))


def _forward(chunks: Any, unembedding: Any, tokens: Any, inverse_temperature: Any) -> tuple[Any, Any]:
    def one_chunk(chunk: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        hidden, chosen = chunk
        logits = _logits(hidden, unembedding) * inverse_temperature
        peak = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - peak)
        total = jnp.sum(weights, axis=-1)
        log_total = jnp.log(total) + peak[..., 0]
        mean_logit = jnp.sum(weights * logits, axis=-1) / total
        chosen_logit = jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
        return chosen_logit - log_total, log_total - mean_logit, log_total

    log_probs, entropies, log_totals = jax.lax.map(one_chunk, (chunks, tokens))
    residuals = (chunks, unembedding, tokens, inverse_temperature, entropies, log_totals)
    return (log_probs, entropies), residuals


def _backward(residuals: Any, cotangents: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    chunks, unembedding, tokens, inverse_temperature, entropies, log_totals = residuals

    def one_chunk(grads: Unembedding, chunk: tuple[Any, ...]) -> tuple[Any, Any]:
        hidden, chosen, entropy, log_total, log_prob_grad, entropy_grad = chunk
        logits = _logits(hidden, unembedding)
        log_pi = logits * inverse_temperature - log_total[..., None]
        # d log pi(a) / d logits = onehot(a) - pi;  d H / d logits = -pi (log pi + H)
        slope = log_prob_grad[..., None] + entropy_grad[..., None] * (log_pi + entropy[..., None])
        is_chosen = jnp.arange(logits.shape[-1]) == chosen[..., None]
        logits_grad = jnp.where(is_chosen, log_prob_grad[..., None], 0.0) - jnp.exp(log_pi) * slope
        product_grad = logits_grad * inverse_temperature * unembedding.slope(logits)
        narrow = product_grad.astype(hidden.dtype)
        hidden_grad = jnp.einsum("BSV,VD->BSD", narrow, unembedding.matrix.astype(hidden.dtype))
        matrix_grad = grads.matrix + jnp.einsum("BSV,BSD->VD", narrow, hidden, preferred_element_type=jnp.float32)
        bias_grad = None if grads.bias is None else grads.bias + jnp.sum(product_grad, axis=(0, 1))
        return replace(grads, matrix=matrix_grad, bias=bias_grad), hidden_grad

    # Accumulate over chunks in float32, whatever the parameters' dtype.
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), unembedding)
    steps = (chunks, tokens, entropies, log_totals, *cotangents)
    grads, chunk_grads = jax.lax.scan(one_chunk, start, steps)
    no_token_grad = np.zeros(tokens.shape, jax.dtypes.float0)
    return (
        chunk_grads,
        jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, unembedding),
        no_token_grad,
        jnp.zeros_like(inverse_temperature),
    )


_chunked.defvjp(_forward, _backward)
