"""Evaluate a finished run again: on more levels, on other levels, on an environment with other options."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_lm import storage
from jaxrl_lm.envs.maze.environment import Maze
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.environment import EnvironmentState, EnvironmentTask, MakeLearner, load_environment_task
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
    task, state = load_environment_task(config, make_learner)
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
        seed: of levels and episodes; another than in training by construction.

    Returns:
        `eval/...` metrics, one number a seed, `[S]`.

    Raises:
        InputError: the run cannot be read, or the environment shows something else than the policy has learned to see.
    """
    task, state = restore_run(config, make_learner)
    env, env_params = config.make_env(**read_env_options(env_options))
    _check_same_view(task, env, env_params)
    level_key, episode_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    if isinstance(env, Maze) and env.source.layout is None:
        env = Maze(env.config, replace(env.source, num_levels=num_episodes))
        env_params = jax.jit(env.new_params)(level_key)

    def evaluate(learner_state: Any) -> dict[str, jax.Array]:
        played = play(
            env,
            task.learner,
            learner_state,
            env_params,
            episode_key,
            num_episodes=num_episodes,
            discount=config.discount,
        )
        return evaluation_metrics(env, env_params, played, config.discount)

    return jax.device_get(jax.jit(jax.vmap(evaluate))(state.learners))


def _check_same_view(task: EnvironmentTask, env: Any, env_params: Any) -> None:
    learned, shown = (
        repr(each.observation_space(params)) for each, params in ((task.env, task.held_out), (env, env_params))
    )
    if learned != shown:
        raise InputError(
            f"env_options: the environment shows {shown}, but the policy has learned to see {learned}; "
            "keep size and observation"
        )
