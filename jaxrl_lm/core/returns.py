"""Advantages and returns over a window of steps; time is the last axis.

Three numbers per step describe its continuation: its `discount` (gamma; 0 where the episode terminates), its `trace`
(lambda; 0 where the episode terminates or is cut) and `next_value`, the value of the next state (V of the final
observation at a time limit). One recursion thus covers terminations, time limits and the edge of the window. Where the
discount is 0, `next_value` is ignored. A masked step passes the accumulator on unchanged: other steps get the same
results as if it were absent, and its own result is 0. It may have any value, including NaN.

Gradients flow through every function here; callers that need constant targets must stop them.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Shaped

from jaxrl_lm.core.masked import zero_masked


def generalized_advantages(
    rewards: Float[Array, "*B T"],
    values: Float[Array, "*B T"],
    next_values: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    traces: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """Generalized advantage estimates: `A_t = delta_t + discount_t * trace_t * A_{t+1}`.

    `delta_t = r_t + discount_t * next_value_t - value_t`, and A = 0 after the last step. A_t itself is not multiplied
    by a power of gamma: all steps have equal weight.

    Args:
        rewards: r_t.
        values: V(o_t), in the unit of the return.
        next_values: V of what follows the step.
        discounts: gamma, or 0 at a step that terminates the episode.
        traces: lambda, or 0 at a step that terminates or cuts the episode.
        mask: nonzero where a step counts.

    Returns:
        Advantages; 0 where masked.

    Reference: Schulman et al., 2016, High-Dimensional Continuous Control Using Generalized Advantage
    Estimation.
    """
    keep = mask.astype(bool)
    rewards, values, discounts, traces = (zero_masked(x, keep) for x in (rewards, values, discounts, traces))
    next_values = zero_masked(next_values, discounts != 0)
    deltas = rewards + discounts * next_values - values
    return _accumulate(deltas, discounts * traces, keep, jnp.zeros(rewards.shape[:-1], rewards.dtype))


def lambda_returns(
    rewards: Float[Array, "*B T"],
    next_values: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    traces: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """Lambda-returns: `G_t = r_t + discount_t * ((1 - trace_t) * next_value_t + trace_t * G_{t+1})`.

    The last kept step has no G_{t+1} and bootstraps from its `next_value`, whatever its trace.

    Args:
        rewards: r_t.
        next_values: V of the next state (or max_a Q, for Q(lambda)).
        discounts: gamma, or 0 at a step that terminates the episode.
        traces: lambda, or 0 at a step that terminates or cuts the episode.
        mask: nonzero where a step counts.

    Returns:
        Returns; 0 where masked.

    Reference: Sutton and Barto, 2018, Reinforcement Learning: An Introduction, chapter 12.
    """
    keep = mask.astype(bool)
    num_kept_from_here = jnp.flip(jnp.cumsum(jnp.flip(keep, -1), axis=-1), -1)
    traces = zero_masked(traces, keep & (num_kept_from_here > 1))
    rewards, discounts = zero_masked(rewards, keep), zero_masked(discounts, keep)
    next_values = zero_masked(next_values, discounts != 0)
    terms = rewards + discounts * (1.0 - traces) * next_values
    return _accumulate(terms, discounts * traces, keep, jnp.zeros(rewards.shape[:-1], rewards.dtype))


def n_step_returns(
    rewards: Float[Array, "*B T"], next_values: Float[Array, "*B T"], discounts: Float[Array, "*B T"], n: int
) -> Float[Array, "*B T"]:
    """N-step returns: `G^n_t = r_t + d_t G^{n-1}_{t+1}`, with `G^1_t = r_t + d_t next_value_t`.

    Near the edge of the window the sum stops at the last step and bootstraps there. An episode cut inside the window (a
    time limit) needs discount 0 and `gamma * V(final observation)` added to its last reward.

    Args:
        rewards: r_t.
        next_values: V of what follows the step.
        discounts: d_t: gamma, or 0 at a step that terminates the episode.
        n: number of rewards before the bootstrap, at least 1.

    Returns:
        Returns.

    Raises:
        ValueError: if `n` is below 1.

    Reference: Sutton and Barto, 2018, Reinforcement Learning: An Introduction, chapter 7.
    """
    if n < 1:
        raise ValueError(f"n is {n}; an n-step return sums at least one reward, so give n >= 1")
    num_steps = rewards.shape[-1]
    n = min(n, num_steps)
    dtype = jnp.result_type(rewards, next_values, discounts, jnp.float32)
    pad = [(0, 0)] * (rewards.ndim - 1) + [(0, n - 1)]
    # Beyond the edge: no reward and no discounting, so the bootstrap of the last step passes through.
    padded_rewards = jnp.pad(rewards.astype(dtype), pad)
    padded_discounts = jnp.pad(discounts.astype(dtype), pad, constant_values=1.0)
    bootstraps = zero_masked(next_values, discounts != 0).astype(dtype)
    bootstraps = jnp.pad(bootstraps, pad, mode="edge")[..., n - 1 :]

    def prepend_step(i: Array, returns: Array) -> Array:
        offset = n - 1 - i
        r = lax.dynamic_slice_in_dim(padded_rewards, offset, num_steps, axis=-1)
        d = lax.dynamic_slice_in_dim(padded_discounts, offset, num_steps, axis=-1)
        return r + d * returns

    return lax.fori_loop(0, n, prepend_step, bootstraps)


def discounted_returns(
    rewards: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    bootstrap: Float[Array, "*B"],
    mask: Shaped[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """Discounted returns: `G_t = r_t + discount_t * G_{t+1}`, with `G_T = bootstrap`.

    Args:
        rewards: r_t.
        discounts: gamma, or 0 at a step that terminates the episode.
        bootstrap: value of the state after the last step.
        mask: nonzero where a step counts.

    Returns:
        Returns; 0 where masked.

    Reference: Sutton and Barto, 2018, Reinforcement Learning: An Introduction, chapter 3.
    """
    keep = mask.astype(bool)
    return _accumulate(zero_masked(rewards, keep), zero_masked(discounts, keep), keep, bootstrap)


def _accumulate(
    terms: Float[Array, "*B T"],
    decays: Float[Array, "*B T"],
    keep: Bool[Array, "*B T"],
    initial: Float[Array, "*B"],
) -> Float[Array, "*B T"]:
    """`y_t = term_t + decay_t * y_{t+1}` backwards from `initial`; terms are 0 where masked."""
    # With term 0 and decay 1 a masked step passes the accumulator on.
    decays = jnp.where(keep, decays, 1.0)
    dtype = jnp.result_type(terms, decays, initial)
    steps = (jnp.moveaxis(terms.astype(dtype), -1, 0), jnp.moveaxis(decays.astype(dtype), -1, 0))
    _, ys = lax.scan(_step_back, initial.astype(dtype), steps, reverse=True)
    return zero_masked(jnp.moveaxis(ys, 0, -1), keep)


def _step_back(y_next: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
    term, decay = step
    y = term + decay * y_next
    return y, y
