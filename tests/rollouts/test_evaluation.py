"""Whole episodes: the oracle gets what is best, and what a policy does counts until its first end alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.envs import make
from jaxrl_lm.rollouts.evaluation import evaluation_metrics, play


def oracle(env: Any, bank: Any) -> Any:
    """Plays by the distance table, which it looks up by the grid it sees."""

    def act(observations: Any, is_first: Any, memory: Any, key: Any) -> Any:
        walls, agent = observations[..., 0].reshape(-1, env.num_cells), observations[..., 1].reshape(-1, env.num_cells)
        goal = jnp.argmax(observations[..., 2].reshape(-1, env.num_cells), axis=-1)
        is_level = jnp.all((bank.moves == 0)[None] == walls[:, None], axis=-1) & (bank.goals[None] == goal[:, None])
        level, position = jnp.argmax(is_level, axis=-1), jnp.argmax(agent, axis=-1)
        width = env.source.width
        nearby = jnp.stack(
            [bank.distances[level, position + offset] for offset in (-width, width, -1, 1)], axis=-1
        ).astype(jnp.int32)
        return jnp.argmin(nearby, axis=-1), memory

    return act


@pytest.mark.parametrize("reward", ["article", "steps", "sparse", "shaped"])
def test_the_oracle_solves_every_level_at_the_optimal_return(reward: str) -> None:
    env, params = make("Maze-v0", size=9, observation="grid", reward=reward, num_levels=40, discount=0.9)
    played = play(
        env, oracle(env, params.bank), lambda _: None, params, jax.random.key(0), num_episodes=1, discount=0.9
    )
    assert played.returns.shape == (40,)
    np.testing.assert_allclose(played.discounted_returns, env.optimal_returns(params, 0.9), rtol=1e-4, atol=1e-5)
    start = np.take_along_axis(np.asarray(params.bank.distances), np.asarray(params.bank.starts)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(played.lengths, start)
    metrics = evaluation_metrics(env, params, played, 0.9)
    assert float(metrics["eval/solved"]) == 1.0
    assert float(metrics["eval/regret"]) == pytest.approx(0.0, abs=1e-5)
    if reward == "sparse":
        assert float(metrics["eval/oracle_share"]) == pytest.approx(1.0, rel=1e-5)


def test_metrics_are_named_after_the_group_and_what_an_end_means() -> None:
    env, params = make("ChainMaze-v0")
    always_right = lambda observations, is_first, memory, key: (jnp.full(observations.shape, 3), memory)  # noqa: E731
    played = play(env, always_right, lambda _: None, params, jax.random.key(0), num_episodes=3, discount=0.5)
    metrics = evaluation_metrics(env, params, played, 0.5, group="eval_train")
    # -1 four times, then 1: -1 - 1/2 - 1/4 - 1/8 + 1/16
    assert {name: float(value) for name, value in metrics.items()} == {
        "eval_train/return": -3.0,
        "eval_train/discounted_return": -1.8125,
        "eval_train/length": 5.0,
        "eval_train/solved": 1.0,
    }
