"""Training in environments: whole chunks of updates in one jitted program, over all seeds at once."""

import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import storage
from jaxrl_lm.distributed import counted, hosts
from jaxrl_lm.distributed.sharding import like
from jaxrl_lm.envs.base import levels_of
from jaxrl_lm.envs.custom import file_of
from jaxrl_lm.training.environments import evaluation, metrics
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.training.environments.task import (
    EnvironmentState,
    EnvironmentTask,
    level_keys,
    load_task,
    over_learners,
)
from jaxrl_lm.training.observers import tell
from jaxrl_lm.training.run import Training, train
from jaxrl_lm.types import Metrics, PyTree

Chunk = Callable[[EnvironmentState, int], tuple[EnvironmentState, dict[str, float]]]


def train_environment(config: EnvironmentRunConfig) -> storage.RunFolder:
    """Train, and leave a run folder with metrics, checkpoints, plots and report.

    Args:
        config: the run's settings and the algorithm's in one.

    Raises:
        InputError: an option is invalid; raised before the run folder is made.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: no learner has a finite loss any more.
    """
    return train(config, lambda: _load(config))


def _load(config: EnvironmentRunConfig) -> Training:
    task, state = load_task(config)
    return Training(
        state=state,
        update=make_chunk(task, storage.RunFolder(hosts.output_folder(Path(config.out)))),
        num_updates=task.num_chunks,
        finish=lambda folder, state: _finish(config, folder, state),
        shown=(*(name + label for label, _ in config.sweep_columns() for name in metrics.SHOWN),),
        fingerprints=_fingerprints(config),
        num_devices=config.num_devices or jax.device_count(),
        unit="steps",
        units_per_update=task.steps_per_chunk,
        score=lambda numbers: metrics.best_return(config, numbers) if config.eval_every else None,
    )


def _finish(config: EnvironmentRunConfig, folder: storage.RunFolder, state: EnvironmentState) -> None:
    config.write_results(folder, state.learners)
    name = config.algorithm_name()
    shown = name.upper() if len(name) <= 5 else name.capitalize()  # PPO, SARSA; Q-learning
    storage.write_report(folder, title=f"{shown} in {config.env}")


def _fingerprints(config: EnvironmentRunConfig) -> dict[str, int]:
    """A checksum of the file that an environment of the user's own is in."""
    path = file_of(config.env)
    return {} if path is None else {"env": zlib.crc32(path.read_bytes())}


def make_chunk(task: EnvironmentTask, folder: storage.RunFolder) -> Chunk:
    """One chunk on the host: fresh levels, updates of all seeds, evaluation, metrics; per-seed numbers to a file."""
    config = task.config
    run = counted(jax.jit(over_learners(config, task.env, partial(_run_updates, task)), donate_argnums=0))
    evaluate = evaluation.make_evaluate(task, task.held_out_env, task.held_out, num_episodes=config.eval_episodes)
    refresh = _make_refresh(task)

    def chunk(state: EnvironmentState, num_done: int) -> tuple[EnvironmentState, dict[str, float]]:
        started = time.perf_counter()
        chunk_key = jax.random.fold_in(state.key, num_done + 1)
        env_params = state.env_params
        if task.refresh_every and num_done and num_done % task.refresh_every == 0:
            env_params = refresh(env_params, chunk_key)
        learners, found = run(state.learners, env_params)
        found = jax.device_get(found)
        seconds = time.perf_counter() - started
        num_steps = task.steps_per_chunk * (num_done + 1)
        was_diverged = np.asarray(state.is_diverged)
        is_diverged = was_diverged | metrics.is_bad(found)
        for line in metrics.say_diverged(config, is_diverged & ~was_diverged, num_steps):
            tell(line)
        is_last = num_done + 1 == task.num_chunks
        if is_last or (config.eval_every and (num_done + 1) % config.eval_every == 0):
            found |= evaluate(learners, env_params, chunk_key)
        found = metrics.without_diverged(found, is_diverged)
        record = {"step": num_done + 1, "num_steps": num_steps, **metrics.by_seed(config, found)}
        storage.append_jsonl(folder.seeds_file, [record])
        numbers = metrics.by_value(config, found) | {
            "steps/per_seed": float(num_steps),
            "time/chunk": seconds,
            "time/steps_per_second": task.steps_per_chunk * len(is_diverged) / seconds,
        }
        if is_diverged.any():
            numbers["seeds/diverged"] = float(is_diverged.sum())
        is_diverged = like(is_diverged, state.is_diverged)
        return replace(state, learners=learners, env_params=env_params, is_diverged=is_diverged), numbers

    return chunk


def _make_refresh(task: EnvironmentTask) -> Callable[[PyTree, jax.Array], PyTree]:
    """Fresh levels for every seed, one seed after the other."""

    def refresh(env_params: PyTree, key: jax.Array) -> PyTree:
        levels = levels_of(task.env)
        assert levels is not None, "only environments with levels are refreshed"
        return jax.lax.map(lambda seed: levels.refresh(*seed), (env_params, level_keys(task.config, levels, key)))

    return jax.jit(refresh, donate_argnums=0)


def _run_updates(task: EnvironmentTask, learner_state: PyTree, env_params: PyTree) -> tuple[PyTree, Metrics]:
    """A chunk of updates of one seed; metrics are means over the chunk, episodes weigh by their number."""

    def update(state: PyTree, _: None) -> tuple[PyTree, Metrics]:
        return task.learner.update(state, env_params)

    learner_state, stacked = jax.lax.scan(update, learner_state, None, length=task.config.chunk_updates)
    counts = stacked["episode/count"]
    found = {
        name: _weighted(values, counts) if name.startswith("episode/") else jnp.mean(values)
        for name, values in stacked.items()
    }
    return learner_state, found | {"episode/count": jnp.sum(counts)}


def _weighted(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean over the updates in which episodes ended; NaN if none did."""
    return jnp.sum(jnp.where(counts > 0, values * counts, 0.0)) / jnp.sum(counts)
