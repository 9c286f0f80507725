"""How good a policy is: whole episodes of its greedy actions, on held-out levels where there are levels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_lm.envs import reset_batch, step_batch
from jaxrl_lm.envs.chain import ChainMaze
from jaxrl_lm.envs.maze.environment import Maze
from jaxrl_lm.types import EnvironmentLearner, Metrics, PyTree


class Episodes(NamedTuple):
    """One whole episode in each of B environments.

    Attributes:
        returns: sum of rewards, `[B]`.
        discounted_returns: sum of discount^t times reward, `[B]`.
        lengths: steps, int32 `[B]`.
        is_terminated: whether the episode came to its own end, not to its time limit, bool `[B]`; in a maze, solved.
    """

    returns: jax.Array
    discounted_returns: jax.Array
    lengths: jax.Array
    is_terminated: jax.Array


def start_episodes(env: Any, key: jax.Array, num_episodes: int, env_params: Any) -> tuple[PyTree, PyTree]:
    """Observations and states: every level of a maze's bank once, else `num_episodes` resets."""
    if isinstance(env, Maze):
        states = env.level_states(env_params)
        return jax.vmap(env.observation, (0, None))(states, env_params), states
    return reset_batch(env, key, num_episodes, env_params)


def play(
    env: Any,
    learner: EnvironmentLearner,
    state: PyTree,
    env_params: Any,
    key: jax.Array,
    *,
    num_episodes: int,
    discount: float | jax.Array,
) -> Episodes:
    """Play whole episodes by the learner's greedy policy; every environment must end its episodes some time.

    Args:
        env: the environment.
        learner: whose policy acts.
        state: of the learner, for one seed.
        env_params: held-out levels.
        key: of resets and transitions.
        num_episodes: B, where the environment is no maze; a maze plays every level of its bank.
        discount: gamma of `discounted_returns`.
    """
    reset_key, step_key = jax.random.split(key)
    observations, env_states = start_episodes(env, reset_key, num_episodes, env_params)
    batch = jax.tree.leaves(env_states)[0].shape[0]
    none = Episodes(jnp.zeros(batch), jnp.zeros(batch), jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool))
    start = (
        jnp.zeros((), jnp.int32),
        env_states,
        observations,
        jnp.ones(batch, bool),
        learner.init_memory(batch),
        jnp.zeros(batch, bool),
        none,
    )

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        time, env_states, observations, is_first, memory, is_over, found = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(step_key, time))
        actions, memory = learner.act(state, observations, is_first, memory, act_key)
        result = step_batch(env, env_key, env_states, actions, env_params)
        counted = jnp.where(is_over, 0.0, result.rewards)
        found = Episodes(
            returns=found.returns + counted,
            discounted_returns=found.discounted_returns + counted * discount**time,
            lengths=found.lengths + ~is_over,
            is_terminated=found.is_terminated | (result.terminated & ~is_over),
        )
        is_done = result.terminated | result.truncated
        return time + 1, result.states, result.observations, is_done, memory, is_over | is_done, found

    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[5]), step, start)[6]


def evaluation_metrics(env: Any, env_params: Any, episodes: Episodes, discount: float | jax.Array) -> Metrics:
    """Scalar metrics of an evaluation; for a maze beside what the oracle's shortest ways earn."""
    metrics: dict[str, jax.Array] = {
        "eval/return": jnp.mean(episodes.returns),
        "eval/discounted_return": jnp.mean(episodes.discounted_returns),
        "eval/length": jnp.mean(episodes.lengths.astype(jnp.float32)),
    }
    is_maze = isinstance(env, Maze | ChainMaze)
    metrics["eval/solved" if is_maze else "eval/terminated"] = jnp.mean(episodes.is_terminated.astype(jnp.float32))
    if isinstance(env, Maze):
        optimal = jnp.mean(env.optimal_returns(env_params, discount))
        metrics["eval/oracle_return"] = optimal
        metrics["eval/regret"] = optimal - metrics["eval/discounted_return"]
        metrics["eval/oracle_share"] = jnp.where(optimal > 0, metrics["eval/discounted_return"] / optimal, jnp.nan)
    return metrics
