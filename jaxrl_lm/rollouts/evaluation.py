"""Evaluate a policy on whole episodes, one per level if the environment has a level bank. Pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm.envs.base import levels_of
from jaxrl_lm.envs.stepping import reset_batch, step_batch
from jaxrl_lm.types import Metrics, PyTree

Act = Callable[[PyTree, jax.Array, PyTree, jax.Array], tuple[jax.Array, PyTree]]
"""`act(observations, is_first, memory, key) -> (actions, memory)`: the policy to evaluate, leaves `[B, ...]`."""


class Episodes(NamedTuple):
    """One whole episode in each of B environments.

    Attributes:
        returns: sum of rewards, `[B]`.
        discounted_returns: sum of discount^t times reward, `[B]`.
        lengths: steps, int32 `[B]`.
        is_terminated: whether the episode terminated before its time limit, bool `[B]`; in a maze, solved.
    """

    returns: jax.Array
    discounted_returns: jax.Array
    lengths: jax.Array
    is_terminated: jax.Array


class _Running(NamedTuple):
    """Episodes in progress.

    Attributes:
        time: steps made, int32 scalar.
        env_states: leaves `[B, ...]`.
        observations: current observations, leaves `[B, ...]`.
        is_first: whether an episode starts, bool `[B]`.
        memory: of the policy.
        is_over: whether the first episode has ended, bool `[B]`.
        found: the first episodes so far.
    """

    time: jax.Array
    env_states: PyTree
    observations: PyTree
    is_first: jax.Array
    memory: PyTree
    is_over: jax.Array
    found: Episodes


def start_episodes(env: Any, key: jax.Array, num_episodes: int, env_params: Any) -> tuple[PyTree, PyTree]:
    """Initial observations and states: one per level of the bank, else `num_episodes` resets."""
    if levels_of(env) is not None:
        return env.level_resets(env_params)
    return reset_batch(env, key, num_episodes, env_params)


def play(
    env: Any,
    act: Act,
    init_memory: Callable[[int], PyTree],
    env_params: Any,
    key: jax.Array,
    *,
    num_episodes: int,
    discount: float | jax.Array,
) -> Episodes:
    """Play whole episodes; every episode must end eventually.

    Args:
        env: the environment.
        act: the policy.
        init_memory: `init_memory(num_envs) -> memory` of the policy.
        env_params: parameters of the environment, with the levels to play if it has levels.
        key: PRNG key of resets, actions and transitions.
        num_episodes: B, if the environment has no levels; else every level of the bank is played.
        discount: gamma of `discounted_returns`.
    """
    reset_key, step_key = jax.random.split(key)
    start = _begin(*start_episodes(env, reset_key, num_episodes, env_params), init_memory)

    def step(now: _Running) -> _Running:
        act_key, env_key = jax.random.split(jax.random.fold_in(step_key, now.time))
        actions, memory = act(now.observations, now.is_first, now.memory, act_key)
        result = step_batch(env, env_key, now.env_states, actions, env_params)
        counted = jnp.where(now.is_over, 0.0, result.rewards)
        found = Episodes(
            returns=now.found.returns + counted,
            discounted_returns=now.found.discounted_returns + counted * discount**now.time,
            lengths=now.found.lengths + ~now.is_over,
            is_terminated=now.found.is_terminated | (result.terminated & ~now.is_over),
        )
        is_done = result.terminated | result.truncated
        return _Running(now.time + 1, result.states, result.observations, is_done, memory, now.is_over | is_done, found)

    return jax.lax.while_loop(lambda now: ~jnp.all(now.is_over), step, start).found


def _begin(observations: PyTree, env_states: PyTree, init_memory: Callable[[int], PyTree]) -> _Running:
    batch = jax.tree.leaves(env_states)[0].shape[0]
    return _Running(
        time=jnp.zeros((), jnp.int32),
        env_states=env_states,
        observations=observations,
        is_first=jnp.ones(batch, bool),
        memory=init_memory(batch),
        is_over=jnp.zeros(batch, bool),
        found=Episodes(jnp.zeros(batch), jnp.zeros(batch), jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)),
    )


def evaluation_metrics(
    env: Any, env_params: Any, episodes: Episodes, discount: float | jax.Array, *, group: str = "eval"
) -> Metrics:
    """Scalar metrics of episodes, compared with the optimal returns if the environment knows them.

    Args:
        env: the environment.
        env_params: parameters with the levels that were played.
        episodes: result of `play`.
        discount: gamma.
        group: prefix of the metrics' names.
    """
    end_name = getattr(env, "end_name", "terminated")
    metrics: Metrics = {
        "return": jnp.mean(episodes.returns),
        "discounted_return": jnp.mean(episodes.discounted_returns),
        "length": jnp.mean(episodes.lengths.astype(jnp.float32)),
        end_name: jnp.mean(episodes.is_terminated.astype(jnp.float32)),
    }
    if levels_of(env) is not None:
        optimal = jnp.mean(env.optimal_returns(env_params, discount))
        metrics["oracle_return"] = optimal
        metrics["regret"] = optimal - metrics["discounted_return"]
        # A share of a negative return is meaningless.
        metrics["oracle_share"] = jnp.where(optimal > 0, metrics["discounted_return"] / optimal, jnp.nan)
    return {f"{group}/{name}": value for name, value in metrics.items()}
