"""The agent of a finished run, for code that wants to act: `load_agent(run).act(observation, key)`."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf
from beartype.door import is_bearable

from jaxrl_lm.envs.base import generated_levels
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder, WhichCheckpoint
from jaxrl_lm.training.environments.algorithms import find_settings
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.training.environments.evaluate import restore_run
from jaxrl_lm.types import PyTree

_INTEGERS_ARE_FLOATS = BeartypeConf(is_pep484_tower=True)


class Agent:
    """A trained policy and the environment that it was trained in.

    Attributes:
        env: the environment; with generated levels, one of held-out levels.
        env_params: its parameters.
    """

    def __init__(self, env: Any, env_params: PyTree, act: Any, memory: PyTree) -> None:
        self.env = env
        self.env_params = env_params
        self._act = jax.jit(act)
        self._first_memory = memory
        self.reset()

    def reset(self) -> None:
        """Begin a new episode; only policies with memory need it."""
        self._memory, self._is_first = self._first_memory, True

    def act(self, observation: PyTree, key: jax.Array) -> jax.Array:
        """The action for one observation.

        Args:
            observation: as the environment shows it, without a batch axis.
            key: of actions that are drawn; greedy ones do not depend on it, except among equals in a table.
        """
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], observation)
        actions, self._memory = self._act(batch, jnp.array([self._is_first]), self._memory, key)
        self._is_first = False
        return actions[0]


def load_agent(
    run: str | Path,
    *,
    seed: int = 0,
    value: float | Mapping[str, float] | None = None,
    is_greedy: bool = True,
    checkpoint: WhichCheckpoint = "newest",
) -> Agent:
    """The agent of a run at one of its checkpoints.

        agent = jaxrl_lm.load_agent("runs/maze")
        observation, state = agent.env.reset(jax.random.key(0), agent.env_params)
        action = agent.act(observation, jax.random.key(1))

    Args:
        run: folder of a run of `jaxrl-lm train`.
        seed: number of the seed, from 0.
        value: of a sweep, which one: the value where one name was swept, else values by name.
        is_greedy: take the best action; else act as in training: sample from the policy, or epsilon-greedily.
        checkpoint: "newest", "best" (the highest `eval/return`, mean over seeds, of a run with `--eval-every`; of a
            sweep, that of its best value; after a seed has diverged, the highest since then), or a number from the
            run's folder `checkpoints`.

    Raises:
        InputError: there is no such run, seed, value or checkpoint.
    """
    config = load_settings(run)
    learner_index = _index(config, seed, value)
    task, state, _ = restore_run(config, checkpoint)
    _check_sound(config, np.asarray(state.is_diverged), learner_index)
    act = task.learner.act if is_greedy else task.learner.sample
    learner = jax.tree.map(lambda leaf: leaf[learner_index], state.learners)
    env_params = task.held_out
    if generated_levels(task.held_out_env) is not None:
        env_params = jax.tree.map(lambda leaf: leaf[seed], env_params)

    def act_of_learner(observations: PyTree, is_first: jax.Array, memory: PyTree, key: jax.Array) -> Any:
        return act(learner, observations, is_first, memory, key)

    return Agent(task.held_out_env, env_params, act_of_learner, task.learner.init_memory(1))


def load_settings(run: str | Path) -> EnvironmentRunConfig:
    """Settings of a run, from its config.yaml.

    Raises:
        InputError: there is no run, or it was not made by `jaxrl-lm train` of this version.
    """
    folder = RunFolder(Path(run))
    saved = folder.read_config()
    kind = find_settings(saved.get("algorithm", saved.get("kind", "")))
    if kind is None:
        raise InputError(
            f"run={str(run)!r} was not made by jaxrl-lm train, so there is nothing to evaluate in an environment"
        )
    return replace(_from_saved(kind, saved), out=str(run))


def _from_saved(kind: Any, saved: Mapping[str, Any]) -> Any:
    """A settings class with the values that a config.yaml holds for it."""
    hints = get_type_hints(kind)
    unknown = set(saved) - {field.name for field in fields(kind)}
    if unknown:
        raise InputError(f"config.yaml has unknown settings: {', '.join(sorted(unknown))}; remove them")
    values = {}
    for name, value in saved.items():
        if is_dataclass(hints[name]) and isinstance(value, Mapping):
            value = _from_saved(hints[name], value)
        values[name] = tuple(value) if isinstance(value, list) else value
        # Of a tuple beartype checks one element, drawn at random: so each is checked in the place of all.
        variants = [(each,) * len(value) for each in value] if isinstance(value, list) and value else [values[name]]
        if not all(is_bearable(each, hints[name], conf=_INTEGERS_ARE_FLOATS) for each in variants):
            raise InputError(f"config.yaml: {name}={values[name]!r:.60} is not a value of this setting; correct it")
    return kind(**values)


def _check_sound(config: EnvironmentRunConfig, is_diverged: np.ndarray, learner_index: int) -> None:
    """Refuse a learner whose parameters are not finite."""
    if not is_diverged[learner_index]:
        return
    point, seed = divmod(learner_index, config.num_seeds)
    if is_diverged.reshape(config.num_points, config.num_seeds)[point].all():
        label = config.parsed_sweep().labels[point]
        raise InputError(
            f"value: all seeds with{label} have diverged, their parameters are not finite; choose another value, or an "
            "earlier checkpoint"
        )
    raise InputError(
        f"seed={seed} has diverged, its parameters are not finite; choose another seed, or an earlier checkpoint"
    )


def _index(config: EnvironmentRunConfig, seed: int, value: float | Mapping[str, float] | None) -> int:
    """Which of the learners `[V * S]` is asked for."""
    if seed not in range(config.num_seeds):
        raise InputError(f"seed={seed}: the run has seeds 0 to {config.num_seeds - 1}; choose one of them")
    seed = int(seed)  # such as 1.0
    sweep = config.parsed_sweep()
    if value is None and len(sweep.points) == 1:
        return seed
    if isinstance(value, int | float) and len(sweep.values) == 1:
        value = dict.fromkeys(sweep.values, value)
    if isinstance(value, Mapping):
        wanted = {name: np.float32(number) for name, number in value.items()}
        for number, point in enumerate(sweep.points):
            if wanted == {name: np.float32(each) for name, each in point.items()}:
                return number * config.num_seeds + seed
    labels = ", ".join(label.strip() for label in sweep.labels if label) or "none, since nothing was swept"
    raise InputError(f"value={value}: choose one of the run's: {labels}")
