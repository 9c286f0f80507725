"""Records shared by the layers.

Scalars of a step have shape `[B, T]`, time last axis. A record's fields are pytree leaves, so records pass through
`jit`, `vmap` and `scan`; under those transformations a leaf may be a tracer, a spec or a batch of either, which is
why the fields are typed as pytrees and their shapes are documented in the docstrings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrl_lm.core.records import record

PyTree = Any
Metrics = dict[str, jax.Array]

NO_BATCH_AXIS = -1
"""In `EnvironmentLearner.batch_axes`: a leaf without an environment axis."""


def _no_batch_axes(state: PyTree) -> PyTree:
    return jax.tree.map(lambda _: NO_BATCH_AXIS, state)


@record
class Trajectory:
    """Steps of an agent; its actions may be moves in a maze or tokens of a completion.

    Attributes:
        observations: pytree that `evaluate` reads; leaves `[B, ...]`.
        actions: the actions taken, `[B, T, ...]`.
        log_probs: log pi(a_t | o_t) of the policy that acted, `[B, T]`, nats.
        values: V(o_t) when the agent acted, `[B, T]`.
        rewards: `[B, T]`, floating point.
        discounts: gamma, or 0 at a step that ends the episode, `[B, T]`.
        traces: lambda, or 0 at a step that ends or cuts the episode, `[B, T]`.
        next_values: V of what follows the step, `[B, T]`; V(final_observation) at a time limit; unused where the
            discount is 0.
        mask: 1 where the policy chose the action, `[B, T]`; policy losses and entropies are means over it.
        value_mask: 1 where value and reward count, `[B, T]`; equal to `mask` unless a step carries a reward
            that no action of the policy's led to (Ziegler et al. pay the score one step after the last token).
        importance: weight of each step in the policy loss, `[B, T]`, where another policy acted than that of
            `log_probs`; None for 1.
    """

    observations: PyTree
    actions: PyTree
    log_probs: PyTree
    values: PyTree
    rewards: PyTree
    discounts: PyTree
    traces: PyTree
    next_values: PyTree
    mask: PyTree
    value_mask: PyTree
    importance: PyTree = None


@record
class ActionEvaluation:
    """A policy's evaluation of given actions; without the logits, so that `[B, T, V]` is never materialised.

    Attributes:
        log_probs: log pi(a_t | o_t), `[B, T]`, nats.
        entropies: entropy of pi(. | o_t), `[B, T]`, nats.
        values: V(o_t), `[B, T]`.
    """

    log_probs: PyTree
    entropies: PyTree
    values: PyTree


Evaluate = Callable[[PyTree, PyTree, PyTree], ActionEvaluation]
"""`evaluate(params, observations, actions) -> ActionEvaluation`."""


class Algorithm(NamedTuple):
    """A pair of pure functions.

    Attributes:
        init: `init(params, key) -> state`.
        update: `update(state, trajectory, key) -> (state, metrics)`.
    """

    init: Callable[[PyTree, jax.Array], PyTree]
    update: Callable[[PyTree, Trajectory, jax.Array], tuple[PyTree, Metrics]]


@record
class AnswerEvaluation:
    """B completions as policies see them before learning.

    Attributes:
        log_probs: of their tokens under the policy, `[B, T]`, nats.
        values: of the states before the tokens, `[B, T]`; None for a learner without a value function.
        reference_log_probs: of their tokens under the reference policy, `[B, T]`, nats.
    """

    log_probs: PyTree
    values: PyTree
    reference_log_probs: PyTree


class AnswerLearner(NamedTuple):
    """An algorithm that learns from a language model's completions and their scores: pure functions of arrays.

    It needs no tokenizer, file or reward function, so it compiles ahead of time from shapes alone.

    Attributes:
        init: `init(params, key) -> state`.
        evaluate: `evaluate(state, reference_params, generation) -> AnswerEvaluation` of B completions (a
            `rollouts.Generation`). It needs no scores, so it runs while reward functions compute them. The reference's
            parameters have no heads, and are None where it is the policy without its adapters.
        update: `update(state, generation, evaluation, scores, key) -> (state, metrics)`: one update from B completions
            and their scores `[B]`. Completions of the same prompt are adjacent.
        policy_params: `policy_params(state) -> params`: parameters of the policy, for sampling.
        answers_per_prompt: completions per prompt in a batch.
        forward_rows: `forward_rows(key, lengths) -> arrays`, int32 `[passes, rows of a pass]`: the rows of each forward
            pass in an update with this key, one array per number of rows; `lengths [B]` are the tokens of prompt and
            completion.
    """

    init: Callable[[PyTree, jax.Array], PyTree]
    evaluate: Callable[[PyTree, PyTree, PyTree], AnswerEvaluation]
    update: Callable[[PyTree, PyTree, AnswerEvaluation, jax.Array, jax.Array], tuple[PyTree, Metrics]]
    policy_params: Callable[[PyTree], PyTree]
    answers_per_prompt: int
    forward_rows: Callable[[jax.Array, jax.Array], list[jax.Array]]

    def evaluate_and_update(
        self, state: PyTree, reference_params: PyTree, generation: PyTree, scores: jax.Array, key: jax.Array
    ) -> tuple[PyTree, Metrics]:
        """Both, for those who want one function."""
        evaluation = self.evaluate(state, reference_params, generation)
        return self.update(state, generation, evaluation, scores, key)


class SupervisedLearner(NamedTuple):
    """An algorithm that learns from a fixed set of examples: pure functions of arrays.

    Attributes:
        init: `init(params) -> state`.
        update: `update(state, batch) -> (state, metrics)`; leaves of the batch are `[num_accumulated, B, ...]`;
            activations of only one `[B, ...]` are in memory at a time.
        loss: `loss(params, batch, state.hyperparams.loss) -> LossSums` of a batch `[B, ...]`, for evaluation.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]
    loss: Callable[[PyTree, PyTree, PyTree], Any]


Act = Callable[[PyTree, PyTree, jax.Array, PyTree, jax.Array], tuple[jax.Array, PyTree]]
"""`act(state, observations, is_first, memory, key) -> (actions, memory)`: a learner's policy."""


class EnvironmentLearner(NamedTuple):
    """An algorithm together with its parallel environments: pure functions, so that seeds can be vmapped.

    All randomness of update k comes from `fold_in(state.key, state.num_updates)`, so the state determines the rest of
    the run.

    Attributes:
        init: `init(key, env_params) -> state`; the state is a struct with at least `key` and `num_updates`, and holds
            parameters, optimizer, environment states, and everything else that an update changes.
        update: `update(state, env_params) -> (state, metrics)`: act and learn; scalar metrics include the
            `episode/...` of `rollouts.episodes`. `env_params` may change between calls (fresh levels).
        act: `act(state, observations, is_first, memory, key) -> (actions, memory)`: the greedy policy, for evaluation;
            leaves of observations `[B, ...]`, `is_first` bool `[B]`.
        sample: as `act`, but with the exploration of the next update: drawn from a stochastic policy, epsilon-greedy
            with the epsilon of `state.num_updates` for action values.
        init_memory: `init_memory(num_envs) -> memory`, None for a policy without memory.
        steps_per_update: environment steps per update.
        batch_axes: `batch_axes(state)`: a tree like the state with the environment axis of each leaf, or
            `NO_BATCH_AXIS`; this axis is sharded over devices.
    """

    init: Callable[[jax.Array, PyTree], PyTree]
    update: Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]
    act: Act
    sample: Act
    init_memory: Callable[[int], PyTree]
    steps_per_update: int
    batch_axes: Callable[[PyTree], PyTree] = _no_batch_axes
