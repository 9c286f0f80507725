"""Evaluate a run again: on more levels, on other levels, on an environment with other options."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_lm import storage
from jaxrl_lm.envs.binning import BinnedEnvironment
from jaxrl_lm.errors import InputError
from jaxrl_lm.spaces import is_discrete
from jaxrl_lm.storage import WhichCheckpoint
from jaxrl_lm.training.environments import evaluation, metrics
from jaxrl_lm.training.environments.config import EnvironmentRunConfig, read_env_options
from jaxrl_lm.training.environments.task import (
    EnvironmentState,
    EnvironmentTask,
    held_out_levels,
    load_task,
    make_env,
)


class Evaluation(NamedTuple):
    """What an evaluation of a run found.

    Attributes:
        metrics: one number a learner, `[V * S]`, as `config.sweep_columns()` says; NaN for what has diverged. The
            groups are those of `evaluation.make_evaluate`.
        num_chunks: chunks of updates before the checkpoint, which is its number.
        num_steps: environment steps of each seed before it.
    """

    metrics: dict[str, np.ndarray]
    num_chunks: int
    num_steps: int


def restore_run(
    config: EnvironmentRunConfig, checkpoint: WhichCheckpoint = "newest"
) -> tuple[EnvironmentTask, EnvironmentState, int]:
    """A run's task, its state at a checkpoint, and the checkpoint's number.

    Args:
        config: as the run was started; `config.out` is its folder.
        checkpoint: the newest, the best, or one by its number: the chunks of updates before it.

    Raises:
        InputError: there is no run, no such checkpoint, or one of other settings.
    """
    if checkpoint == "best" and not config.eval_every:
        raise InputError(
            f"checkpoint='best': {config.out} was started without --eval-every, so no checkpoint was kept as the best; "
            "train with --eval-every 4, for example, or use the newest"
        )
    # What was trained on many devices is evaluated on one.
    task, state = load_task(replace(config, num_devices=1))
    with storage.Checkpoints(storage.RunFolder(Path(config.out)).checkpoints_folder) as checkpoints:
        num_chunks, state, _ = checkpoints.restore(state, checkpoint)
    return task, state, num_chunks


def evaluate_run(
    config: EnvironmentRunConfig,
    *,
    env_options: tuple[str, ...],
    num_episodes: int,
    seed: int,
    checkpoint: WhichCheckpoint = "newest",
) -> Evaluation:
    """Whole episodes of every seed of a run at one of its checkpoints.

    Args:
        config: as the run was started.
        env_options: KEY=VALUE each, in place of the run's own; observations must keep their shape.
        num_episodes: episodes of each seed; for generated mazes the number of held-out levels of each seed.
        seed: random seed of levels and episodes; independent of training, whatever its seed.
        checkpoint: the newest, the best, or one by its number: the chunks of updates before it.

    Raises:
        InputError: the run cannot be read, or the environment shows something else than the policy has learned to see.
    """
    task, state, num_chunks = restore_run(config, checkpoint)
    env, env_params = make_env(config, **read_env_options(env_options))
    _check_same_view(task, env, env_params)
    level_key, episode_key = evaluation_keys(seed)
    env, env_params = held_out_levels(config, env, env_params, num_episodes, level_key, trained=task.env)
    evaluate = evaluation.make_evaluate(task, env, env_params, num_episodes=num_episodes)
    found = evaluate(state.learners, state.env_params, episode_key)
    found = metrics.without_diverged(found, np.asarray(state.is_diverged))
    return Evaluation(found, num_chunks, num_chunks * task.steps_per_chunk)


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
            f"env_options: the environment returns {shown}, but the policy was trained on {learned}; "
            "keep size and observation"
        )
    learned, taken = task.env.action_space(task.held_out), env.action_space(env_params)
    if is_discrete(learned) and repr(learned) != repr(taken):
        raise InputError(
            f"env_options: the environment takes {taken}, but the policy was trained on {learned}; leave out what "
            "changes the number of actions"
        )
    if isinstance(env, BinnedEnvironment) and env.bins != task.env.bins:
        raise InputError(
            "env_options: bins follow the bounds of observations and actions, which these options change, so their "
            "numbers would mean others than in training; leave such options out, or train with --binning.low and "
            "--binning.high (actions: without --binning.num-actions)"
        )
