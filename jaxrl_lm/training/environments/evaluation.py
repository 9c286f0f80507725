"""Evaluations of all learners of a run: on held-out levels, and on those they are trained on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.distributed import counted
from jaxrl_lm.envs.base import generated_levels, levels_of
from jaxrl_lm.rollouts.evaluation import evaluation_metrics, play
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.training.environments.task import EnvironmentTask, over_learners
from jaxrl_lm.training.observers import tell
from jaxrl_lm.types import Metrics, PyTree

# Below so many layouts for each held-out level, the levels say little about others.
_FEW_LAYOUTS = 0.5


def agent_discounts(config: EnvironmentRunConfig) -> jax.Array:
    """Gamma of every learner, `[V * S]`."""
    values = [point.get("discount", config.agent.discount) for point in config.parsed_sweep().points]
    return jnp.repeat(jnp.asarray(values, jnp.float32), config.num_seeds)


def make_evaluate(
    task: EnvironmentTask, env: Any, env_params: PyTree, *, num_episodes: int
) -> Callable[[PyTree, PyTree, jax.Array], dict[str, np.ndarray]]:
    """A function that evaluates every learner of a run; says so if the levels are few.

    Args:
        task: the run.
        env: environment to play; need not be that of training.
        env_params: its parameters, `[S, ...]` with generated levels.
        num_episodes: of each learner, where the environment has no levels.

    Returns:
        `evaluate(learners, train_params, key) -> metrics`, `[V * S]` each. `eval/...`: greedy actions;
        `eval_sampled/...`: actions as in training (drawn from a policy, epsilon-greedy for action values);
        `eval_train/...`: greedy, on levels of the training (`train_params`), where levels are generated.
    """
    plays = [
        evaluate_learners(task, env, env_params, num_episodes=num_episodes, group=group)
        for group in ("eval", "eval_sampled")
    ]
    counts = level_counts(task.config, env, env_params)
    note = None if generated_levels(env) is None else few_layouts(counts, num_episodes)
    if note:
        tell(f"note: {note}")

    @counted
    @jax.jit
    def play_all(learners: PyTree, train_params: PyTree, key: jax.Array) -> Metrics:
        found: Metrics = {}
        for each in plays:
            found |= each(learners, key)
        if generated_levels(task.env) is not None:
            found |= evaluate_on_training_levels(task, learners, train_params, key, num_episodes=num_episodes)
        return found

    return lambda *args: jax.device_get(play_all(*args)) | counts


def evaluate_learners(
    task: EnvironmentTask, env: Any, env_params: PyTree, *, num_episodes: int, group: str
) -> Callable[[PyTree, jax.Array], Metrics]:
    """A function that plays whole episodes with every learner.

    Args:
        task: the run.
        env: environment to play; need not be that of training.
        env_params: its parameters, `[S, ...]` with generated levels.
        num_episodes: of each learner, where the environment has no levels.
        group: first part of the metrics' names; "eval_sampled" acts as in training, the others greedily.

    Returns:
        `evaluate(learners, key) -> metrics`, `[V * S]` each; jit it.
    """
    act = task.learner.sample if group == "eval_sampled" else task.learner.act

    def one(learner: PyTree, params: PyTree, discount: jax.Array, key: jax.Array) -> Metrics:
        played = play(
            env,
            partial(act, learner),
            task.learner.init_memory,
            params,
            key,
            num_episodes=num_episodes,
            discount=discount,
        )
        return evaluation_metrics(env, params, played, discount, group=group)

    discounts = agent_discounts(task.config)

    def evaluate(learners: PyTree, key: jax.Array) -> Metrics:
        return over_learners(task.config, env, one)(learners, env_params, discounts, jnp.tile(key, discounts.shape))

    return evaluate


def evaluate_on_training_levels(
    task: EnvironmentTask, learners: PyTree, env_params: PyTree, key: jax.Array, *, num_episodes: int
) -> Metrics:
    """`eval_train/...` of every learner, on levels that its episodes are being drawn from; pure, jit it."""
    bank = levels_of(task.env)
    assert bank is not None, "only environments with levels have levels of the training"
    levels = jax.vmap(lambda params: bank.current_levels(params, key, num_episodes))(env_params)
    evaluate = evaluate_learners(task, task.env, levels, num_episodes=num_episodes, group="eval_train")
    return evaluate(learners, key)


def level_counts(config: EnvironmentRunConfig, env: Any, env_params: PyTree) -> dict[str, np.ndarray]:
    """How many different levels, and layouts, each learner is evaluated on, `[V * S]`; nothing without levels."""
    bank = levels_of(env)
    if bank is None:
        return {}
    if not bank.generates_levels:
        counts = [bank.count_levels(env_params)] * config.num_seeds
    else:
        params = jax.device_get(env_params)
        counts = [
            bank.count_levels(jax.tree.map(lambda leaf, seed=seed: leaf[seed], params))
            for seed in range(config.num_seeds)
        ]
    levels, layouts = np.tile(np.array(counts, np.float64), (config.num_points, 1)).T
    return {"eval/distinct_levels": levels, "eval/distinct_layouts": layouts}


def few_layouts(counts: dict[str, np.ndarray], num_levels: int) -> str | None:
    """What to say where held-out levels repeat, with the numbers."""
    if not counts or np.mean(counts["eval/distinct_layouts"]) >= _FEW_LAYOUTS * num_levels:
        return None
    levels, layouts = (np.median(counts[f"eval/distinct_{name}"]) for name in ("levels", "layouts"))
    return (
        f"the {num_levels} held-out levels have only {layouts:.0f} different layouts and are {levels:.0f} different "
        "levels, because levels of this size repeat; training never meets these layouts. Larger levels have more"
    )
