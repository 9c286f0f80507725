"""Games of a language model in text worlds as trajectories, with a step per turn or per token."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm.core.records import record
from jaxrl_lm.envs.stepping import StepResult
from jaxrl_lm.rollouts.acting import ActingState, start_acting, step_acting
from jaxrl_lm.rollouts.environments import where_any
from jaxrl_lm.rollouts.text_policy import TextPolicy, Turn, TurnObservations, Window
from jaxrl_lm.types import ActionEvaluation, Evaluate, PyTree, Trajectory

StepUnit = Literal["turn", "token"]
"""What a step of a trajectory is: a whole answer, with the sum of its tokens' log-probabilities, or one token."""


@record
class GameState:
    """B games that go on from update to update.

    Attributes:
        acting: state of the text worlds.
        is_first: whether the current observations start an episode, bool `[B]`.
        window: what the model remembers; None for nothing.
    """

    acting: ActingState
    is_first: PyTree
    window: Window | None


def start_games(env: Any, policy: TextPolicy, key: jax.Array, num_games: int, env_params: Any) -> GameState:
    """Reset the worlds and the windows."""
    return GameState(
        acting=start_acting(env, key, num_games, env_params),
        is_first=jnp.ones(num_games, bool),
        window=policy.init_window(num_games),
    )


class _Played(NamedTuple):
    """A turn of B games and what it led to, stacked to `[T, B, ...]`."""

    observations: jax.Array
    is_first: jax.Array
    turn: Turn
    rewards: jax.Array
    terminated: jax.Array
    is_done: jax.Array
    final_values: jax.Array


def collect_turns(
    env: Any,
    policy: TextPolicy,
    params: PyTree,
    env_params: Any,
    state: GameState,
    key: jax.Array,
    *,
    num_turns: int,
    unit: StepUnit,
    discount: jax.Array | float,
    trace_decay: jax.Array | float,
) -> tuple[GameState, Trajectory]:
    """Play T turns of B games.

    A turn that terminates its episode has discount 0 and trace 0. One that a limit cuts keeps its discount, bootstraps
    from V(final_observation), and has trace 0. With a step per token, the reward is that of the answer's last token,
    and the tokens before it have discount 1.

    Args:
        env: a text world.
        policy: how the model plays in it.
        params: of the model.
        env_params: of the worlds.
        state: of the games.
        key: of answers, transitions and resets.
        num_turns: T, a multiple of the new turns of a window.
        unit: step of the trajectory.
        discount: gamma, per turn.
        trace_decay: lambda, per step.

    Returns:
        The games after the turns, and the trajectory, `[B, T]` or `[B, T * A]`.
    """
    start = state

    def play(state: GameState, turn_key: jax.Array) -> tuple[GameState, _Played]:
        act_key, env_key = jax.random.split(turn_key)
        seen = state.acting.observations
        turn = policy.act(params, seen, state.is_first, state.window, act_key)
        acting, result = step_acting(env, env_key, state.acting, turn.tokens, env_params)
        is_done = result.terminated | result.truncated
        played = _Played(
            observations=seen,
            is_first=state.is_first,
            turn=turn._replace(window=None),
            rewards=result.rewards,
            terminated=result.terminated,
            is_done=is_done,
            final_values=_final_values(policy, params, result, turn.window),
        )
        return GameState(acting=acting, is_first=is_done, window=turn.window), played

    state, stacked = jax.lax.scan(play, state, jax.random.split(key, num_turns))
    last = policy.value(params, state.acting.observations, state.is_first, state.window)
    played: _Played = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), stacked)
    observations = policy.observe(played.observations, played.is_first, start.window)
    make = _by_turn if unit == "turn" else _by_token
    return state, make(observations, played, last, discount, trace_decay)


def make_evaluate(policy: TextPolicy, unit: StepUnit) -> Evaluate:
    """`evaluate` of the trajectories of `collect_turns`; an answer's entropy is the sum of its tokens'."""

    def evaluate(params: PyTree, observations: TurnObservations, answers: jax.Array) -> ActionEvaluation:
        batch, num_turns = observations.tokens.shape[:2]
        answers = answers.reshape(batch, num_turns, policy.answer_size)
        found = policy.evaluate(params, observations, answers)
        if unit == "token":
            return jax.tree.map(lambda leaf: leaf.reshape(batch, -1), found)
        is_token = answers >= 0
        return ActionEvaluation(
            log_probs=jnp.sum(jnp.where(is_token, found.log_probs, 0.0), axis=-1),
            entropies=jnp.sum(jnp.where(is_token, found.entropies, 0.0), axis=-1),
            values=found.values[..., 0],
        )

    return evaluate


def _final_values(policy: TextPolicy, params: PyTree, result: StepResult, window: Window | None) -> jax.Array:
    """V(final_observation) of games that a limit cut, 0 elsewhere; computed only if there is one."""
    is_cut = result.truncated & ~result.terminated

    def value() -> jax.Array:
        found = policy.value(params, result.final_observations, jnp.zeros_like(is_cut), window)
        return jnp.where(is_cut, found, 0.0)

    return where_any(is_cut, value)


def _by_turn(
    observations: TurnObservations,
    played: _Played,
    last_values: jax.Array,
    discount: jax.Array | float,
    trace_decay: jax.Array | float,
) -> Trajectory:
    values = played.turn.values[..., 0]
    following = jnp.concatenate([values[:, 1:], last_values[:, None]], axis=1)
    return Trajectory(
        observations=observations,
        actions=played.turn.tokens,
        log_probs=jnp.sum(played.turn.log_probs, axis=-1),
        values=values,
        rewards=played.rewards,
        discounts=jnp.where(played.terminated, 0.0, discount),
        traces=jnp.where(played.is_done, 0.0, trace_decay),
        next_values=jnp.where(played.is_done, played.final_values, following),
        mask=jnp.ones_like(values),
        value_mask=jnp.ones_like(values),
    )


def _by_token(
    observations: TurnObservations,
    played: _Played,
    last_values: jax.Array,
    discount: jax.Array | float,
    trace_decay: jax.Array | float,
) -> Trajectory:
    turns = _by_turn(observations, played, last_values, discount, trace_decay)
    is_token = played.turn.tokens >= 0
    is_last = is_token & (jnp.cumsum(is_token, axis=-1) == jnp.sum(is_token, axis=-1, keepdims=True))

    def at_last(of_turn: jax.Array, otherwise: jax.Array | float) -> jax.Array:
        return jnp.where(is_last, of_turn[..., None], otherwise).reshape(len(of_turn), -1)

    values = played.turn.values
    mask = is_token.astype(jnp.float32).reshape(len(values), -1)
    return replace(
        turns,
        actions=played.turn.tokens.reshape(mask.shape),
        log_probs=played.turn.log_probs.reshape(mask.shape),
        values=values.reshape(mask.shape),
        rewards=at_last(turns.rewards, 0.0),
        discounts=at_last(turns.discounts, 1.0),
        traces=at_last(turns.traces, trace_decay),
        next_values=at_last(turns.next_values, jnp.roll(values, -1, axis=-1)),
        mask=mask,
        value_mask=mask,
    )
