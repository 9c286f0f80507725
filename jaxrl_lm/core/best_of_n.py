"""Best-of-n sampling: the value of the best-scoring of n completions, and its KL divergence from the policy."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def expected_best_of_n(scores: Float[Array, "*B N"], values: Float[Array, "*B N"], n: int) -> Float[Array, "*B"]:
    """Mean value of the completion with the highest score among n, over all choices of n of the N completions.

    With completions sorted by score, the one of rank i (from 1) is the best of C(i - 1, n - 1) of the C(N, n) choices:

        sum_i values_i C(i - 1, n - 1) / C(N, n)

    Args:
        scores: scores that select; ties are broken by order.
        values: values to average: the scores themselves, or those of another reward.
        n: completions to choose from, at most N.

    Reference: Nakano et al., 2021, WebGPT: Browser-assisted question-answering with human feedback, appendix I.
    """
    num_answers = scores.shape[-1]
    assert 1 <= n <= num_answers, f"n={n} of {num_answers} answers"
    # w_N = n / N and w_(i-1) = w_i (i - n) / (i - 1): no factorial is ever formed.
    rank = jnp.arange(num_answers, 1, -1, dtype=jnp.float32)
    ratios = jnp.maximum(rank - n, 0) / (rank - 1)
    weights = n / num_answers * jnp.cumprod(jnp.concatenate([jnp.ones(1, jnp.float32), ratios]))[::-1]
    order = jnp.argsort(scores, axis=-1)
    return jnp.take_along_axis(values, order, axis=-1) @ weights


def best_of_n_kl(n: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """KL divergence of the best of n from a single sample, nats, if no two completions have the same score.

        log n - (n - 1) / n

    It is an upper bound if completions repeat.

    Reference: Stiennon et al., 2020, Learning to summarize from human feedback, appendix G.3.
    """
    return jnp.log(n) - (n - 1) / n
