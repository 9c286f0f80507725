"""Records that pass between the layers.

Scalars of a step have shape `[B, T]`, time last axis. A record's fields are pytree leaves, so records pass through
`jit`, `vmap` and `scan`; under those transformations a leaf may be a tracer, a spec or a batch of either, which is
why the fields are typed as pytrees and their shapes stand in the docstrings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrl_lm.core.records import record

PyTree = Any
Metrics = dict[str, jax.Array]

NO_BATCH_AXIS = -1
"""In `EnvironmentLearner.batch_axes`: a leaf that belongs to no single environment."""


def _no_batch_axes(state: PyTree) -> PyTree:
    return jax.tree.map(lambda _: NO_BATCH_AXIS, state)


@record
class Trajectory:
    """Steps of an agent, whether its actions are moves in a maze or tokens of an answer.

    Attributes:
        observations: pytree, what `evaluate` needs to score the actions; leaves `[B, ...]`.
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


@record
class ActionEvaluation:
    """What a policy says of given actions; never the logits, so that `[B, T, V]` need not exist.

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


class AnswerLearner(NamedTuple):
    """An algorithm that learns from a language model's answers and their scores: pure functions of arrays.

    No tokenizer, file or reward function is in it, so that it compiles ahead of time from shapes alone.

    Attributes:
        init: `init(params, key) -> state`.
        update: `update(state, reference_params, generation, scores, key) -> (state, metrics)`: one update from B
            answers (a `rollouts.Generation`) and their scores `[B]`; the reference's parameters have no heads. The
            answers to one prompt are next to each other.
        policy_params: `policy_params(state) -> params`: those of the policy, to answer with.
        answers_per_prompt: how many answers to each prompt a batch holds.
    """

    init: Callable[[PyTree, jax.Array], PyTree]
    update: Callable[[PyTree, PyTree, PyTree, jax.Array, jax.Array], tuple[PyTree, Metrics]]
    policy_params: Callable[[PyTree], PyTree]
    answers_per_prompt: int


class SupervisedLearner(NamedTuple):
    """An algorithm that learns from given examples: pure functions of arrays.

    Attributes:
        init: `init(params) -> state`.
        update: `update(state, batch) -> (state, metrics)`; leaves of the batch `[num_accumulated, B, ...]`, of which
            one `[B, ...]` is in memory at a time.
        loss: `loss(params, batch, state.hyperparams.loss) -> LossSums` of a batch `[B, ...]`, for evaluation.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]
    loss: Callable[[PyTree, PyTree, PyTree], Any]


class EnvironmentLearner(NamedTuple):
    """An algorithm together with the batch of environments it acts in: pure functions, so that seeds vmap.

    All randomness of update k comes from `fold_in(state.key, state.num_updates)`: a state says all that follows.

    Attributes:
        init: `init(key, env_params) -> state`; the state is a struct with at least `key` and `num_updates`, and holds
            parameters, optimizer, environment states, and whatever else an update changes.
        update: `update(state, env_params) -> (state, metrics)`: act, learn, and scalar metrics, among them the
            `episode/...` of `rollouts.episodes`. `env_params` may change between calls (fresh levels).
        act: `act(state, observations, is_first, memory, key) -> (actions, memory)`: the greedy policy, for evaluation;
            leaves of observations `[B, ...]`, `is_first` bool `[B]`.
        init_memory: `init_memory(num_envs) -> memory`, None for a policy without memory.
        steps_per_update: environment steps of one update.
        batch_axes: `batch_axes(state)`: a tree like the state, with the axis of each leaf along which the environments
            are, or `NO_BATCH_AXIS`; what is spread over devices.
        sample: as `act`, but actions are drawn from the policy; None for an algorithm whose policy is greedy.
    """

    init: Callable[[jax.Array, PyTree], PyTree]
    update: Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]
    act: Callable[[PyTree, PyTree, jax.Array, PyTree, jax.Array], tuple[jax.Array, PyTree]]
    init_memory: Callable[[int], PyTree]
    steps_per_update: int
    batch_axes: Callable[[PyTree], PyTree] = _no_batch_axes
    sample: Callable[[PyTree, PyTree, jax.Array, PyTree, jax.Array], tuple[jax.Array, PyTree]] | None = None
