"""One-step targets of temporal-difference learning on action values, and the traces that spread their errors.

`tm1` is the step that is learned from, `t` what follows it: `discount_t` is gamma, or 0 where the step ended the
episode. A time limit keeps its discount, and `q_t` is then that of the final observation. Where the discount is 0,
nothing of step t is read. Letters: A actions.

Gradients flow through every function here; a caller that wants constant targets stops them.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrl_lm.core.masked import zero_masked

Scalar = Float[Array, ""] | int | float


def q_learning(
    r_t: Float[Array, "*B"], discount_t: Float[Array, "*B"], q_t: Float[Array, "*B A"]
) -> Float[Array, "*B"]:
    """Q-learning's target: `r_t + discount_t * max_a q_t(a)`.

    Args:
        r_t: reward of the step.
        discount_t: gamma, or 0 where the step ended the episode.
        q_t: action values of what follows.

    Returns:
        Targets for `q_tm1(a_tm1)`.

    Reference: Watkins, 1989, Learning from Delayed Rewards.
    """
    return _bootstrap(r_t, discount_t, jnp.max(q_t, axis=-1))


def double_q_learning(
    r_t: Float[Array, "*B"],
    discount_t: Float[Array, "*B"],
    q_t_value: Float[Array, "*B A"],
    q_t_selector: Float[Array, "*B A"],
) -> Float[Array, "*B"]:
    """Double Q-learning's target: `r_t + discount_t * q_t_value(argmax_a q_t_selector(a))`.

    Args:
        r_t: reward of the step.
        discount_t: gamma, or 0 where the step ended the episode.
        q_t_value: action values of what follows, by the estimate that is not being learned.
        q_t_selector: the same by the estimate that is; the first of several best actions is chosen.

    Returns:
        Targets for the selector's `q_tm1(a_tm1)`.

    Reference: van Hasselt, 2010, Double Q-learning.
    """
    return _bootstrap(r_t, discount_t, _pick(q_t_value, jnp.argmax(q_t_selector, axis=-1)))


def sarsa(
    r_t: Float[Array, "*B"],
    discount_t: Float[Array, "*B"],
    q_t: Float[Array, "*B A"],
    a_t: Int[Array, "*B"],
) -> Float[Array, "*B"]:
    """SARSA's target: `r_t + discount_t * q_t(a_t)`.

    Args:
        r_t: reward of the step.
        discount_t: gamma, or 0 where the step ended the episode.
        q_t: action values of what follows.
        a_t: the action that is taken next.

    Returns:
        Targets for `q_tm1(a_tm1)`.

    Reference: Rummery and Niranjan, 1994, On-Line Q-Learning Using Connectionist Systems.
    """
    return _bootstrap(r_t, discount_t, _pick(q_t, a_t))


def expected_sarsa(
    r_t: Float[Array, "*B"],
    discount_t: Float[Array, "*B"],
    q_t: Float[Array, "*B A"],
    probs_t: Float[Array, "*B A"],
) -> Float[Array, "*B"]:
    """Expected SARSA's target: `r_t + discount_t * sum_a probs_t(a) q_t(a)`.

    Args:
        r_t: reward of the step.
        discount_t: gamma, or 0 where the step ended the episode.
        q_t: action values of what follows.
        probs_t: the policy's probabilities there, for instance those of `epsilon_greedy_probs`.

    Returns:
        Targets for `q_tm1(a_tm1)`.

    Reference: van Seijen et al., 2009, A Theoretical and Empirical Analysis of Expected Sarsa.
    """
    return _bootstrap(r_t, discount_t, jnp.sum(probs_t * q_t, axis=-1))


def epsilon_greedy_probs(q_t: Float[Array, "*B A"], epsilon: Scalar) -> Float[Array, "*B A"]:
    """Probabilities of the epsilon-greedy policy: `epsilon / A + (1 - epsilon) * is_best / num_best`.

    Args:
        q_t: action values.
        epsilon: share of the steps whose action is drawn uniformly from all.

    Returns:
        Probabilities; actions of the same, highest value share the greedy part evenly.
    """
    is_best = is_greedy(q_t)
    num_best = jnp.sum(is_best, axis=-1, keepdims=True)
    return epsilon / q_t.shape[-1] + (1.0 - epsilon) * is_best / num_best


def is_greedy(q_t: Float[Array, "*B A"]) -> Bool[Array, "*B A"]:
    """Which actions have the highest value; several where they tie."""
    return q_t == jnp.max(q_t, axis=-1, keepdims=True)


def td_errors(q_tm1: Float[Array, "*B A"], a_tm1: Int[Array, "*B"], targets: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Temporal-difference errors: `delta = target - q_tm1(a_tm1)`."""
    return targets - _pick(q_tm1, a_tm1)


def replacing_traces(
    traces: Float[Array, "*B S A"], s_tm1: Int[Array, "*B"], a_tm1: Int[Array, "*B"], decay: Float[Array, "*B"]
) -> Float[Array, "*B S A"]:
    """Eligibility of every entry of a table for the next error: `e <- decay * e`, then `e(s_tm1, a_tm1) = 1`.

    With decay `gamma * lambda`, and 0 where `a_tm1` was not greedy or begins an episode, and `Q += alpha * delta * e`
    for the errors of `q_learning`, this is Watkins's Q(lambda). (Peng and Williams's does not cut the trace at
    exploratory actions; as lambda-returns it is `returns.lambda_returns` with next values `max_a q_t(a)`.)

    Args:
        traces: eligibility of each state (S) and action before the step.
        s_tm1: the state.
        a_tm1: the action taken there.
        decay: what earlier steps keep.

    Returns:
        Eligibility for the error of this step.

    Reference: Watkins, 1989, Learning from Delayed Rewards; Peng and Williams, 1996, Incremental Multi-Step
    Q-Learning; Singh and Sutton, 1996, Reinforcement Learning with Replacing Eligibility Traces.
    """
    num_states, num_actions = traces.shape[-2:]
    is_state = s_tm1[..., None, None] == jnp.arange(num_states)[:, None]
    is_action = a_tm1[..., None, None] == jnp.arange(num_actions)
    return jnp.where(is_state & is_action, 1.0, decay[..., None, None] * traces)


def _bootstrap(r_t: Array, discount_t: Array, v_t: Array) -> Array:
    return r_t + discount_t * zero_masked(v_t, discount_t != 0)


def _pick(q: Array, a: Array) -> Array:
    return jnp.take_along_axis(q, a[..., None], axis=-1)[..., 0]
