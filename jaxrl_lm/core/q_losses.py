"""Targets and losses for action values; the last axis of `q_values` is the action.

A target combines the value of the next state, `next_values`, with a horizon: one step, n steps, or a lambda-weighted
mean over all numbers of steps. The two are chosen independently:

    next_values of a step                            one step               lambda-returns
    V(s')                                            TD(0)                  TD(lambda)
    greedy_values(Q(s', .))                          q_learning_targets     Peng and Williams's Q(lambda)
    values_of_actions(Q(s', .), a')                  sarsa_targets          SARSA(lambda)
    expected_values(Q(s', .), probabilities)         expected_sarsa_targets expected SARSA(lambda)
    values_of_actions(Q(s', .), greedy_actions(Q2))  double_q_targets       double Q(lambda)

Lambda-returns are `returns.lambda_returns(rewards, next_values, discounts, traces, mask)`; n steps are
`returns.n_step_returns` along a rollout, or `n_step_transitions` here, whose results replace `rewards` and
`discounts`. For tables, `replacing_traces` propagates one-step errors back in time: Watkins's Q(lambda).

A step's discount is gamma, or 0 where the episode terminates. At a time limit the discount stays gamma, and the next
state is the final observation. Where the discount is 0, next values are ignored. An action mask marks legal actions;
illegal ones are never the maximum, whatever their value.

Functions named `..._targets` stop gradients; all others let them through.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrl_lm.core.masked import zero_masked
from jaxrl_lm.core.value_losses import huber_value_loss

ActionMask = Bool[Array, "*B A"] | None
Scalar = Float[Array, ""] | int | float


def values_of_actions(q_values: Float[Array, "*B A"], actions: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """`Q(s, a)` of the given actions.

    Args:
        q_values: Q(s, .).
        actions: a.

    Returns:
        Values; their gradient reaches no other action.
    """
    # A select and a sum take a fifth of the CPU time of a gather with its gradient's scatter.
    is_taken = jnp.arange(q_values.shape[-1]) == actions[..., None]
    return jnp.sum(jnp.where(is_taken, q_values, 0.0), axis=-1)


def greedy_actions(q_values: Float[Array, "*B A"], action_mask: ActionMask = None) -> Int[Array, "*B"]:
    """`argmax_a Q(s, a)` over legal actions, the first of equals.

    Args:
        q_values: Q(s, .).
        action_mask: which actions are legal; all where None.

    Returns:
        Actions, int32.
    """
    return jnp.argmax(_only_legal(q_values, action_mask), axis=-1).astype(jnp.int32)


def greedy_values(q_values: Float[Array, "*B A"], action_mask: ActionMask = None) -> Float[Array, "*B"]:
    """`max_a Q(s, a)` over legal actions.

    Args:
        q_values: Q(s, .).
        action_mask: which actions are legal; all where None.

    Returns:
        Values; -inf where no action is legal.
    """
    return jnp.max(_only_legal(q_values, action_mask), axis=-1)


def expected_values(q_values: Float[Array, "*B A"], probabilities: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """`sum_a pi(a | s) Q(s, a)`.

    Args:
        q_values: Q(s, .).
        probabilities: pi(. | s), for example from `epsilon_greedy_probs`.
    """
    return jnp.sum(probabilities * q_values, axis=-1)


def is_greedy(q_values: Float[Array, "*B A"]) -> Bool[Array, "*B A"]:
    """Which actions have the highest value, including ties."""
    return q_values == jnp.max(q_values, axis=-1, keepdims=True)


def epsilon_greedy_probs(q_values: Float[Array, "*B A"], epsilon: Scalar) -> Float[Array, "*B A"]:
    """Probabilities of the epsilon-greedy policy: `epsilon / A + (1 - epsilon) * is_best / num_best`.

    Args:
        q_values: Q(s, .).
        epsilon: probability of a uniformly random action.

    Returns:
        Probabilities; tied best actions share the greedy part equally.
    """
    is_best = is_greedy(q_values)
    num_best = jnp.sum(is_best, axis=-1, keepdims=True, dtype=q_values.dtype)
    return epsilon / q_values.shape[-1] + (1.0 - epsilon) * is_best / num_best


def q_learning_targets(
    rewards: Float[Array, "*B"],
    discounts: Float[Array, "*B"],
    next_q_values: Float[Array, "*B A"],
    action_mask: ActionMask = None,
) -> Float[Array, "*B"]:
    """`y = r + discount * max_a Q(s', a)`.

    Args:
        rewards: r, or the n-step sum of `n_step_transitions`.
        discounts: of s', 0 where the episode terminated.
        next_q_values: Q(s', .), of the target network if there is one.
        action_mask: which actions are legal in s'.

    Returns:
        Targets for Q(s, a). Q(lambda): `returns.lambda_returns` of `greedy_values(next_q_values, action_mask)`.

    Reference: Watkins and Dayan, 1992, Q-learning; Peng and Williams, 1996, Incremental Multi-Step Q-Learning.
    """
    return _targets(rewards, discounts, greedy_values(next_q_values, action_mask))


def double_q_targets(
    rewards: Float[Array, "*B"],
    discounts: Float[Array, "*B"],
    next_q_values: Float[Array, "*B A"],
    selector_q_values: Float[Array, "*B A"],
    action_mask: ActionMask = None,
) -> Float[Array, "*B"]:
    """`y = r + discount * Q(s', argmax_a Q_selector(s', a))`.

    Args:
        rewards: r, or the n-step sum of `n_step_transitions`.
        discounts: of s', 0 where the episode terminated.
        next_q_values: Q(s', .) for the value: of the target network, or of the table not being updated.
        selector_q_values: Q(s', .) for the action: of the online network, or of the table being updated; ties go to
            the first action.
        action_mask: which actions are legal in s'.

    Returns:
        Targets for Q_selector(s, a).

    Reference: van Hasselt, 2010, Double Q-learning (tables); van Hasselt, Guez and Silver, 2016, Deep Reinforcement
    Learning with Double Q-learning (networks).
    """
    next_values = values_of_actions(next_q_values, greedy_actions(selector_q_values, action_mask))
    return _targets(rewards, discounts, next_values)


def sarsa_targets(
    rewards: Float[Array, "*B"],
    discounts: Float[Array, "*B"],
    next_q_values: Float[Array, "*B A"],
    next_actions: Int[Array, "*B"],
) -> Float[Array, "*B"]:
    """`y = r + discount * Q(s', a')`.

    Args:
        rewards: r, or the n-step sum of `n_step_transitions`.
        discounts: of s', 0 where the episode terminated.
        next_q_values: Q(s', .).
        next_actions: a', the next action.

    Returns:
        Targets for Q(s, a). SARSA(lambda): `returns.lambda_returns` of
        `values_of_actions(next_q_values, next_actions)`.

    Reference: Rummery and Niranjan, 1994, On-Line Q-Learning Using Connectionist Systems.
    """
    return _targets(rewards, discounts, values_of_actions(next_q_values, next_actions))


def expected_sarsa_targets(
    rewards: Float[Array, "*B"],
    discounts: Float[Array, "*B"],
    next_q_values: Float[Array, "*B A"],
    next_probabilities: Float[Array, "*B A"],
) -> Float[Array, "*B"]:
    """`y = r + discount * sum_a pi(a | s') Q(s', a)`.

    Args:
        rewards: r, or the n-step sum of `n_step_transitions`.
        discounts: of s', 0 where the episode terminated.
        next_q_values: Q(s', .).
        next_probabilities: pi(. | s').

    Returns:
        Targets for Q(s, a); with a greedy pi, those of Q-learning.

    Reference: van Seijen et al., 2009, A Theoretical and Empirical Analysis of Expected Sarsa.
    """
    return _targets(rewards, discounts, expected_values(next_q_values, next_probabilities))


def n_step_transitions(
    rewards: Float[Array, "*B N"], discounts: Float[Array, "*B N"], is_cut: Shaped[Array, "*B N"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"], Int[Array, "*B"]]:
    """Merge up to n steps into one: `R = sum_{i<=k} (prod_{j<i} d_j) r_i`, `D = prod_{j<=k} d_j`, k the last step.

    k is the first step that ends the episode, otherwise n - 1. A target `R + D * max_a Q(s_{k+1}, a)` therefore never
    reads the next episode, and at a time limit it bootstraps from the final observation.

    Args:
        rewards: rewards of n successive steps.
        discounts: gamma, or 0 at a step that terminates the episode.
        is_cut: whether the step is the last of its episode, by termination or time limit.

    Returns:
        R, D and k (int32).

    Reference: Sutton and Barto, 2018, Reinforcement Learning: An Introduction, chapter 7.
    """
    num_steps = rewards.shape[-1]
    is_within = jnp.cumsum(is_cut.astype(jnp.int32), axis=-1) - is_cut.astype(jnp.int32) == 0
    last = jnp.sum(is_within, axis=-1, dtype=jnp.int32) - 1
    total, discount = jnp.zeros(rewards.shape[:-1], rewards.dtype), jnp.ones(rewards.shape[:-1], discounts.dtype)
    for step in range(num_steps):
        total += jnp.where(is_within[..., step], discount * rewards[..., step], 0.0)
        discount = jnp.where(is_within[..., step], discount * discounts[..., step], discount)
    return total, discount, last


def dueling_q_values(values: Float[Array, "*B"], advantages: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
    """`Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a')`.

    Args:
        values: V.
        advantages: A.

    Returns:
        Q-values, with mean V over actions.

    Reference: Wang et al., 2016, Dueling Network Architectures for Deep Reinforcement Learning.
    """
    return values[..., None] + advantages - jnp.mean(advantages, axis=-1, keepdims=True)


def td_losses(
    predictions: Float[Array, "*B"], targets: Float[Array, "*B"], huber_delta: Float[ArrayLike, ""] = jnp.inf
) -> Float[Array, "*B"]:
    """Half the squared error, linear beyond delta: `0.5 * e^2` where `|e| <= delta`, else `delta (|e| - 0.5 delta)`.

    Args:
        predictions: Q(s, a).
        targets: y, constants.
        huber_delta: error above which the loss is linear; infinite for the squared loss.

    Returns:
        Losses, in the square of the unit of the return.

    Reference: Mnih et al., 2015, Human-level control through deep reinforcement learning.
    """
    return huber_value_loss(predictions, targets, huber_delta)


def importance_weights(probabilities: Float[Array, "*B"], exponent: Float[ArrayLike, ""]) -> Float[Array, "*B"]:
    """Importance weights for prioritised sampling: `w_i = P_i^-beta / max_j P_j^-beta`, j over the batch.

    Args:
        probabilities: P_i, the sampling probability of each item, up to a common factor.
        exponent: beta; 0 for no correction, 1 for full correction.

    Returns:
        Weights in (0, 1], the largest of the batch 1.

    Reference: Schaul et al., 2016, Prioritized Experience Replay.
    """
    # The largest weight belongs to the smallest probability; the ratio cannot overflow.
    return (jnp.min(probabilities) / probabilities) ** exponent


def replacing_traces(
    traces: Float[Array, "*B S A"], states: Int[Array, "*B"], actions: Int[Array, "*B"], decay: Float[Array, "*B"]
) -> Float[Array, "*B S A"]:
    """Update replacing eligibility traces: `e <- decay * e`, then `e(s, a) = 1`.

    With decay `gamma * lambda`, or 0 where the action is not greedy or begins an episode, and
    `Q += alpha * (target - Q(s, a)) * e` with `q_learning_targets`, this is Watkins's Q(lambda). With `sarsa_targets`
    and no cut at exploratory actions it is SARSA(lambda).

    Args:
        traces: eligibility of each state (S) and action before the step.
        states: s.
        actions: a.
        decay: factor on earlier traces.

    Returns:
        Eligibility for the error of this step.

    Reference: Watkins, 1989, Learning from Delayed Rewards; Peng and Williams, 1996, Incremental Multi-Step
    Q-Learning; Singh and Sutton, 1996, Reinforcement Learning with Replacing Eligibility Traces.
    """
    num_states, num_actions = traces.shape[-2:]
    is_state = states[..., None, None] == jnp.arange(num_states)[:, None]
    is_action = actions[..., None, None] == jnp.arange(num_actions)
    return jnp.where(is_state & is_action, 1.0, decay[..., None, None] * traces)


def _targets(rewards: Array, discounts: Array, next_values: Array) -> Array:
    return jax.lax.stop_gradient(rewards + discounts * zero_masked(next_values, discounts != 0))


def _only_legal(q_values: Float[Array, "*B A"], action_mask: ActionMask) -> Float[Array, "*B A"]:
    return q_values if action_mask is None else jnp.where(action_mask, q_values, -jnp.inf)
