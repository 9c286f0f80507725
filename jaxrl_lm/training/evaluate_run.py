"""Evaluate a finished run again: on more levels, on other levels, on an environment with other options."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_lm import storage
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.environment import (
    EnvironmentState,
    EnvironmentTask,
    MakeLearner,
    agent_discounts,
    held_out_levels,
    load_environment_task,
    make_env,
)
from jaxrl_lm.training.environment_config import read_env_options
from jaxrl_lm.training.evaluation import evaluation_metrics, play


def restore_run(config: Any, make_learner: MakeLearner) -> tuple[EnvironmentTask, EnvironmentState]:
    """A run's task, and its state at the newest checkpoint.

    Args:
        config: as the run was started; `config.out` is its folder.
        make_learner: its algorithm.

    Raises:
        InputError: there is no run, no checkpoint, or one of other settings.
    """
    # What was trained on many devices is evaluated on one.
    task, state = load_environment_task(replace(config, num_devices=1), make_learner)
    with storage.Checkpoints(storage.RunFolder(Path(config.out)).checkpoints_folder) as checkpoints:
        _, state, _ = checkpoints.restore(state)
    return task, state


def evaluate_run(
    config: Any, make_learner: MakeLearner, *, env_options: tuple[str, ...], num_episodes: int, seed: int
) -> dict[str, np.ndarray]:
    """Greedy episodes of every seed of a run at its newest checkpoint.

    Args:
        config: as the run was started.
        make_learner: its algorithm.
        env_options: KEY=VALUE each, in place of the run's own; observations must keep their shape.
        num_episodes: episodes of each seed; for generated mazes so many levels, each played once.
        seed: of levels and episodes; its draws are others than training's, whatever that one's seed.

    Returns:
        `eval/...` metrics, one number a seed, `[S]`; of a sweep `[V * S]`, as `config.sweep_columns()` says.

    Raises:
        InputError: the run cannot be read, or the environment shows something else than the policy has learned to see.
    """
    task, state = restore_run(config, make_learner)
    env, env_params = make_env(config, **read_env_options(env_options))
    _check_same_view(task, env, env_params)
    level_key, episode_key = evaluation_keys(seed)
    env, env_params = held_out_levels(env, env_params, num_episodes, level_key)

    def evaluate(learner_state: Any, discount: jax.Array) -> dict[str, jax.Array]:
        played = play(
            env,
            task.learner,
            learner_state,
            env_params,
            episode_key,
            num_episodes=num_episodes,
            discount=discount,
        )
        return evaluation_metrics(env, env_params, played, discount)

    return jax.device_get(jax.jit(jax.vmap(evaluate))(state.learners, agent_discounts(config)))


def evaluation_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Keys of levels and of episodes, which no run draws from, whatever its seed."""
    # Training splits key(seed), and fold_in(key, i) is the i-th of a split: no split is so long.
    level_key, episode_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0x6576616C))
    return level_key, episode_key


def _check_same_view(task: EnvironmentTask, env: Any, env_params: Any) -> None:
    learned, shown = (
        repr(each.observation_space(params)) for each, params in ((task.env, task.held_out), (env, env_params))
    )
    if learned != shown:
        raise InputError(
            f"env_options: the environment shows {shown}, but the policy has learned to see {learned}; "
            "keep size and observation"
        )
