"""Training in environments: whole chunks of updates in one jitted program, over all seeds at once."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrl_lm import storage
from jaxrl_lm.envs import make
from jaxrl_lm.envs.binning import BinnedEnvironment, BinningConfig
from jaxrl_lm.envs.maze.environment import Maze
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.evaluation import evaluation_metrics, play
from jaxrl_lm.training.loop import LoopConfig, run_updates
from jaxrl_lm.types import EnvironmentLearner, Metrics, PyTree

SHOWN = ("episode/return", "eval/return", "eval/solved")
_EXEMPT = frozenset({"save_every", "keep_checkpoints", "wandb_project", "num_devices"})
# Fields of a learner's state whose leaves are `[S, B, ...]`; those of a replay memory are `[S, slots, B, ...]`.
_OF_ENVS = frozenset({"rollout", "env_states", "observations", "tracker", "traces", "next_actions"})
_PER_SEED = (
    "episode/return",
    "episode/length",
    "eval/return",
    "eval/solved",
    "eval/oracle_share",
    "eval/regret",
)

MakeLearner = Callable[[Any, Any, Any], EnvironmentLearner]
"""`make_learner(config, env, env_params) -> EnvironmentLearner`."""


@struct.dataclass(kw_only=True)
class EnvironmentState:
    """Everything that training changes; what a checkpoint holds.

    Attributes:
        learners: of all seeds, leaves `[S, ...]`.
        env_params: shared by all seeds, levels included.
        key: of fresh levels and evaluations; chunk number k draws from `fold_in(key, k)`.
    """

    learners: PyTree
    env_params: PyTree
    key: PyTree


@dataclass(frozen=True, kw_only=True)
class EnvironmentTask:
    """What stays the same during training.

    Attributes:
        config: the run's settings, which are the algorithm's as well.
        env: the environment.
        learner: the algorithm.
        held_out_env: the environment of evaluations.
        held_out: its parameters, with levels that training never meets.
        num_chunks: chunks of the whole run.
        refresh_every: chunks between fresh levels; 0 for never.
    """

    config: Any
    env: Any
    learner: EnvironmentLearner
    held_out_env: Any
    held_out: Any
    num_chunks: int
    refresh_every: int


def train_environment(config: Any, make_learner: MakeLearner) -> storage.RunFolder:
    """Train, and leave a run folder with metrics, checkpoints, plots and report.

    Args:
        config: an `EnvironmentRunConfig` that is the algorithm's configuration as well.
        make_learner: the algorithm.

    Raises:
        InputError: an option is not what it must be; raised before the run folder is made.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite.
    """
    storage.check_wandb(config.wandb_project)
    task, state = load_environment_task(config, make_learner)
    if config.resume:
        folder = storage.RunFolder.open(Path(config.out), _saved_settings(config), ignore=_EXEMPT)
    else:
        folder = storage.RunFolder.create(Path(config.out), _saved_settings(config))
    loop = LoopConfig(
        num_updates=task.num_chunks,
        save_every=config.save_every,
        keep_checkpoints=config.keep_checkpoints,
        shown=(*(name + label for label, _ in config.sweep_columns() for name in SHOWN), "time/steps_per_second"),
        wandb_project=config.wandb_project,
    )
    run_updates(folder, state, make_chunk(task, folder), loop, fingerprints={}, resume=config.resume)
    storage.write_report(folder, title=f"{config.env}: {type(config).__name__}")
    return folder


def load_environment_task(config: Any, make_learner: MakeLearner) -> tuple[EnvironmentTask, EnvironmentState]:
    """Environment, algorithm and first state.

    Raises:
        InputError: one of them is not what it must be.
    """
    env, env_params = make_env(config)
    if is_generated_maze(env):
        env = Maze(env.config, replace(env.source, part="training"))
        env_params = env.default_params
    learner_key, state_key, held_out_key = jax.random.split(jax.random.key(config.seed), 3)
    held_out_env, held_out = held_out_levels(env, env_params, config.eval_episodes, held_out_key)
    refresh_every = 0
    if is_generated_maze(env) and config.refresh_levels:
        steps = config.chunk_updates * _steps_of_each_env(config, make_learner, env, env_params)
        refresh_every = -(-int(env_params.max_steps_in_episode) // steps)
        env_params = jax.jit(env.refresh)(env_params, jax.random.fold_in(state_key, 0))
    learner = make_learner(config, env, env_params)
    num_chunks = -(-config.total_steps // (learner.steps_per_update * config.chunk_updates))
    annealed = _with_anneal(config, num_chunks * config.chunk_updates)
    if annealed is not config:
        learner = make_learner(annealed, env, env_params)
    task = EnvironmentTask(
        config=config,
        env=env,
        learner=learner,
        held_out_env=held_out_env,
        held_out=held_out,
        num_chunks=num_chunks,
        refresh_every=refresh_every,
    )
    env_params = jax.tree.map(jnp.asarray, env_params)  # Python's numbers, which a checkpoint does not hold
    learners = _init_learners(config, learner, learner_key, env_params)
    return task, place(EnvironmentState(learners=learners, env_params=env_params, key=state_key), config)


def make_chunk(
    task: EnvironmentTask, folder: storage.RunFolder
) -> Callable[[EnvironmentState, int], tuple[EnvironmentState, dict[str, float]]]:
    """One chunk on the host: fresh levels, updates of all seeds, evaluation, metrics; per-seed numbers to a file."""
    run = jax.jit(jax.vmap(partial(_run_updates, task), (0, None)), donate_argnums=0)
    evaluate = jax.jit(jax.vmap(partial(_evaluate, task), (0, None, 0)))
    discounts = agent_discounts(task.config)
    refresh = jax.jit(task.env.refresh, donate_argnums=0) if task.refresh_every else None
    config = task.config
    steps = task.learner.steps_per_update * config.chunk_updates

    def chunk(state: EnvironmentState, num_done: int) -> tuple[EnvironmentState, dict[str, float]]:
        started = time.perf_counter()
        chunk_key = jax.random.fold_in(state.key, num_done + 1)
        env_params = state.env_params
        if refresh is not None and num_done and num_done % task.refresh_every == 0:
            env_params = refresh(env_params, chunk_key)
        learners, metrics = run(state.learners, env_params)
        metrics = jax.device_get(metrics)
        seconds = time.perf_counter() - started
        is_last = num_done + 1 == task.num_chunks
        if is_last or (config.eval_every and (num_done + 1) % config.eval_every == 0):
            metrics |= jax.device_get(evaluate(learners, chunk_key, discounts))
        num_steps = steps * (num_done + 1)
        record = {"step": num_done + 1, "num_steps": num_steps, **_by_seed(config, metrics)}
        storage.append_jsonl(folder.seeds_file, [record])
        numbers = _by_value(config, metrics) | {
            "steps/per_seed": float(num_steps),
            "time/chunk": seconds,
            "time/steps_per_second": steps * _num_learners(config) / seconds,
        }
        return replace(state, learners=learners, env_params=env_params), numbers

    return chunk


def place(state: EnvironmentState, config: Any) -> EnvironmentState:
    """Spread the environments over the devices asked for; everything else lies on each of them.

    Raises:
        InputError: there are not so many devices, or they do not divide the environments.
    """
    num_devices = config.num_devices or jax.device_count()
    if num_devices == 1:
        return state
    if num_devices > jax.device_count():
        raise InputError(f"num_devices={num_devices}: there are {jax.device_count()}; choose 0 for all")
    if config.num_envs % num_devices:
        raise InputError(
            f"num_envs={config.num_envs} is not divided by num_devices={num_devices}; choose a multiple of it"
        )
    mesh = jax.make_mesh((num_devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:num_devices])

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = {getattr(entry, "name", "") for entry in path}
        axis = 2 if "replay" in names else 1
        is_of_envs = "steps" in names if "replay" in names else not _OF_ENVS.isdisjoint(names)
        is_of_envs &= leaf.shape[axis : axis + 1] == (config.num_envs,)
        spec = PartitionSpec(*(None,) * axis, "data") if is_of_envs else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(put, state)


def _init_learners(config: Any, learner: EnvironmentLearner, key: jax.Array, env_params: Any) -> PyTree:
    """States of all seeds, `[V * S, ...]`: where V values are swept, each is met by every seed."""
    keys = jax.random.split(key, config.num_seeds)
    sweep = config.parsed_sweep()
    if sweep is None:
        return jax.jit(jax.vmap(learner.init, (0, None)))(keys, env_params)
    name, values = sweep
    _check_swept(config, name, values)
    learners = jax.jit(jax.vmap(learner.init, (0, None)))(jnp.tile(keys, len(values)), env_params)
    column = jnp.repeat(jnp.asarray(values, jnp.float32), config.num_seeds)
    known = set()

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        *_, room, last = ["", "", *(getattr(entry, "name", "") for entry in path)]
        if room != "hyperparams":
            return leaf
        known.add(last)
        return column if last == name else leaf

    learners = jax.tree_util.tree_map_with_path(put, learners)
    if name not in known:
        raise InputError(
            f"sweep={config.sweep!r}: {name} cannot be swept; what can: {', '.join(sorted(known)) or 'none'}"
        )
    return learners


def make_env(config: Any, **options: Any) -> tuple[Any, Any]:
    """A run's environment and its parameters; `options` take the place of the run's own.

    Raises:
        InputError: an id, an option or the binning does not fit.
    """
    options = config.parsed_env_options() | options
    if options.get("reward") == "shaped" and options.setdefault("discount", config.discount) != config.discount:
        raise InputError(
            f"env_options: discount={options['discount']} of the shaped reward must be the agent's, "
            f"discount={config.discount}; leave it out"
        )
    if options.get("reward") == "shaped" and config.parsed_sweep() and config.parsed_sweep()[0] == "discount":
        raise InputError(f"sweep={config.sweep!r}: the shaped reward has one discount; choose reward=sparse or article")
    env, env_params = make(config.env, **options)
    if config.binning == BinningConfig():
        return env, env_params
    if isinstance(env, Maze):
        raise InputError(f"binning: the levels of {config.env} could then not be held out or replaced; leave it out")
    return BinnedEnvironment(env, env_params, config.binning), env_params


def is_generated_maze(env: Any) -> bool:
    """Whether an environment's levels can be drawn anew and held out."""
    return isinstance(env, Maze) and env.source.layout is None


def _check_swept(config: Any, name: str, values: tuple[float, ...]) -> None:
    """Whether each value could stand in the settings.

    Raises:
        InputError: one could not.
    """
    for owner in (config, getattr(config, "ppo", config)):
        if isinstance(getattr(owner, name, None), float):
            for value in values:
                if not np.isfinite(value):
                    raise InputError(f"sweep={config.sweep!r}: {value} is no number to train with")
                replace(owner, **{name: value})


def held_out_levels(env: Any, env_params: Any, num_levels: int, key: jax.Array) -> tuple[Any, Any]:
    """Environment and parameters of evaluations: levels that training never meets, where levels are generated."""
    if not is_generated_maze(env):
        return env, env_params
    held_out = Maze(env.config, replace(env.source, num_levels=num_levels, part="held-out"))
    return held_out, jax.jit(held_out.new_params)(key)


def _with_anneal(config: Any, num_updates: int) -> Any:
    """The settings with the length of the run where an algorithm leaves it to the trainer."""
    if getattr(config, "anneal_updates", 0) is None:
        return replace(config, anneal_updates=num_updates)
    ppo = getattr(config, "ppo", None)
    if ppo is not None and ppo.anneal_updates is None:
        return replace(config, ppo=replace(ppo, anneal_updates=num_updates))
    return config


def _steps_of_each_env(config: Any, make_learner: MakeLearner, env: Any, env_params: Any) -> int:
    return make_learner(config, env, env_params).steps_per_update // config.num_envs


def _run_updates(task: EnvironmentTask, learner_state: PyTree, env_params: Any) -> tuple[PyTree, Metrics]:
    """A chunk of updates of one seed; metrics are means over the chunk, episodes weigh by their number."""

    def update(state: PyTree, _: None) -> tuple[PyTree, Metrics]:
        return task.learner.update(state, env_params)

    learner_state, stacked = jax.lax.scan(update, learner_state, None, length=task.config.chunk_updates)
    counts = stacked["episode/count"]
    metrics = {
        name: _weighted(values, counts) if name.startswith("episode/") else jnp.mean(values)
        for name, values in stacked.items()
    }
    return learner_state, metrics | {"episode/count": jnp.sum(counts)}


def _weighted(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean over the updates in which episodes ended; NaN if none did."""
    return jnp.sum(jnp.where(counts > 0, values * counts, 0.0)) / jnp.sum(counts)


def agent_discounts(config: Any) -> jax.Array:
    """Gamma of every learner, `[V * S]`."""
    name, values = config.parsed_sweep() or ("", ())
    swept = values if name == "discount" else (config.discount,) * max(1, len(values))
    return jnp.repeat(jnp.asarray(swept, jnp.float32), config.num_seeds)


def _evaluate(task: EnvironmentTask, learner_state: PyTree, key: jax.Array, discount: jax.Array) -> Metrics:
    played = play(
        task.held_out_env,
        task.learner,
        learner_state,
        task.held_out,
        key,
        num_episodes=task.config.eval_episodes,
        discount=discount,
    )
    return evaluation_metrics(task.held_out_env, task.held_out, played, discount)


def _num_learners(config: Any) -> int:
    sweep = config.parsed_sweep()
    return config.num_seeds * (len(sweep[1]) if sweep else 1)


def _by_seed(config: Any, metrics: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Numbers of every seed for learning curves; null where a seed has none."""
    return {
        name + label: [_number(value) for value in metrics[name][rows]]
        for name in _PER_SEED
        for label, rows in config.sweep_columns()
        if name in metrics
    }


def _by_value(config: Any, metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over seeds, for each swept value; one that has diverged is left out while others go on."""
    numbers: dict[str, float] = {}
    for name, values in metrics.items():
        means = {name + label: _mean(name, values[rows]) for label, rows in config.sweep_columns()}
        finite = {label: mean for label, mean in means.items() if np.isfinite(mean)}
        numbers |= (finite or means) if config.sweep else means
    return numbers


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(name: str, values: np.ndarray) -> float:
    """Mean over seeds; of episodes over the seeds in which any ended."""
    if name.startswith(("episode/", "eval/")):
        values = values[~np.isnan(values)]
    return float(np.mean(values)) if values.size else float("nan")


def _saved_settings(config: Any) -> dict[str, Any]:
    """What config.yaml holds: everything but `resume`, which is no setting of the run."""
    return {name: value for name, value in asdict(config).items() if name != "resume"}
