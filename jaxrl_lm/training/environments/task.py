"""What a run in an environment consists of: environment, learner, levels of every seed, first state."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_lm.core.records import record
from jaxrl_lm.envs.base import LevelEnvironment, generated_levels
from jaxrl_lm.envs.binning import BinnedEnvironment, BinningConfig
from jaxrl_lm.envs.registry import make
from jaxrl_lm.envs.wrappers import wrap
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.training.environments.devices import check_memory, place
from jaxrl_lm.training.environments.sweep import check_sweep, set_hyperparams
from jaxrl_lm.types import EnvironmentLearner, PyTree


@record
class EnvironmentState:
    """Everything that training changes; what a checkpoint holds.

    Letters: S seeds, V points of the sweep (1 where nothing is swept).

    Attributes:
        learners: leaves `[V * S, ...]`, all seeds of the first point, then those of the next.
        env_params: of the environment; with generated levels `[S, ...]`, since each seed has its own.
        key: of fresh levels and evaluations; chunk number k draws from `fold_in(key, k)`.
        is_diverged: learners whose loss was not finite, bool `[V * S]`.
    """

    learners: PyTree
    env_params: PyTree
    key: PyTree
    is_diverged: PyTree


@dataclass(frozen=True, kw_only=True)
class EnvironmentTask:
    """What stays the same during training.

    Attributes:
        config: the run's settings, which are the algorithm's as well.
        env: the environment.
        learner: the algorithm.
        held_out_env: the environment of evaluations.
        held_out: its parameters; with generated levels `[S, ...]`, levels that training never meets.
        num_chunks: chunks of the whole run.
        refresh_every: chunks between fresh levels; 0 for never.
    """

    config: EnvironmentRunConfig
    env: Any
    learner: EnvironmentLearner
    held_out_env: Any
    held_out: Any
    num_chunks: int
    refresh_every: int

    @property
    def steps_per_chunk(self) -> int:
        """Environment steps of a chunk of one learner."""
        return self.learner.steps_per_update * self.config.chunk_updates


def load_task(config: EnvironmentRunConfig) -> tuple[EnvironmentTask, EnvironmentState]:
    """Environment, algorithm and first state.

    Raises:
        InputError: one of them is invalid.
    """
    env, env_params = make_env(config)
    levels = generated_levels(env)
    if levels is not None:
        env = env.of_part("training")
        check_blindness(levels, config)
    learner, num_chunks = _make_learner(config, env, env_params)
    refresh_every = 0
    if levels is not None and config.refresh_levels:
        steps_of_each = learner.steps_per_update // config.agent.num_envs * config.chunk_updates
        refresh_every = -(-int(env_params.max_steps_in_episode) // steps_of_each)
    learner_key, state_key, level_key, held_out_key = jax.random.split(jax.random.key(config.seed), 4)
    first = partial(first_levels, config, env, env_params, is_refreshed=refresh_every > 0)
    keys = jnp.tile(jax.random.split(learner_key, config.num_seeds), config.num_points)
    init = jax.jit(over_learners(config, env, learner.init))
    level_shapes = jax.eval_shape(first, level_key)
    check_memory(config, jax.eval_shape(init, keys, level_shapes), level_shapes)
    env_params = first(level_key)
    held_out_env, held_out = held_out_levels(config, env, env_params, config.eval_episodes, held_out_key)
    sweep = config.parsed_sweep()
    check_sweep(sweep, config)
    learners = config.first_learners(init(keys, env_params))
    learners = set_hyperparams(learners, sweep, config.num_seeds)
    task = EnvironmentTask(
        config=config,
        env=env,
        learner=learner,
        held_out_env=held_out_env,
        held_out=held_out,
        num_chunks=num_chunks,
        refresh_every=refresh_every,
    )
    state = EnvironmentState(
        learners=learners, env_params=env_params, key=state_key, is_diverged=jnp.zeros(keys.shape, bool)
    )
    return task, place(state, learner.batch_axes, config)


def make_env(config: EnvironmentRunConfig, **options: Any) -> tuple[Any, Any]:
    """A run's environment and its parameters; `options` take the place of the run's own.

    Raises:
        InputError: an id, an option or the binning does not fit.
    """
    options = config.with_env_options(config.parsed_env_options(), options)
    discount = config.agent.discount
    if options.get("reward") == "shaped" and options.setdefault("discount", discount) != discount:
        raise InputError(
            f"env_options: discount={options['discount']} of the shaped reward must be the agent's, "
            f"discount={discount}; leave it out"
        )
    if options.get("reward") == "shaped" and "discount" in config.parsed_sweep().values:
        raise InputError(f"sweep={config.sweep!r}: the shaped reward has one discount; choose reward=sparse or article")
    objects = config.env_objects()
    for name in options.keys() & objects.keys():
        raise InputError(f"env_options: {name} is that of the model; leave it out")
    env, env_params = make(config.env, **options, **objects)
    env = wrap(env, env_params, config.wrappers)
    if config.binning == BinningConfig():
        return env, env_params
    return BinnedEnvironment(env, env_params, config.binning), env_params


def check_blindness(levels: LevelEnvironment, config: EnvironmentRunConfig) -> None:
    """Refuse to train on changing levels that the observation does not show.

    Raises:
        InputError: says what to choose.
    """
    has_one = not config.refresh_levels and levels.num_levels == 1
    if levels.blindness and not has_one:
        raise InputError(f"env_options: {levels.blindness}")


def first_levels(
    config: EnvironmentRunConfig, env: Any, env_params: Any, key: jax.Array, *, is_refreshed: bool
) -> PyTree:
    """Parameters to begin with: levels of each seed's own, `[S, ...]`; without generated levels `env_params`."""
    levels = generated_levels(env)
    if levels is None:
        return jax.tree.map(jnp.asarray, env_params)  # Python's numbers, which a checkpoint does not hold

    return _make_levels(level_keys(config, levels, key), levels, is_refreshed)


def held_out_levels(
    config: EnvironmentRunConfig,
    env: Any,
    env_params: Any,
    num_levels: int,
    key: jax.Array,
    *,
    trained: Any = None,
) -> tuple[Any, PyTree]:
    """Environment and parameters of evaluations.

    Args:
        config: the run's settings.
        env: the environment.
        env_params: its parameters, which are returned where levels are not generated.
        num_levels: held-out levels of each seed.
        key: of the levels.
        trained: the environment of the training, if it is another one.

    Returns:
        With generated levels, parameters `[S, ...]` whose levels training never meets.
    """
    if generated_levels(env) is None:
        return env, env_params
    held_out = env.of_part("held-out", num_levels, trained=generated_levels(trained))
    levels = generated_levels(held_out)
    assert levels is not None
    return held_out, _make_levels(level_keys(config, levels, key), levels, False)


def over_learners(config: EnvironmentRunConfig, env: Any, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`function(learner, env_params, ...)` for all learners, each with the environment parameters of its seed.

    Args:
        config: the run's settings.
        env: the environment, which says whether parameters are `[S, ...]`.
        function: of one learner; further arguments are one a learner.

    Returns:
        a function of learners `[V * S, ...]`, parameters, and further arguments `[V * S, ...]`.
    """
    num_points, num_seeds = config.num_points, config.num_seeds
    env_axis = None if generated_levels(env) is None else 0

    def by_seed(learners: PyTree, env_params: PyTree, *rest: PyTree) -> PyTree:
        return jax.vmap(function, (0, env_axis, *(0,) * len(rest)))(learners, env_params, *rest)

    def by_point(learners: PyTree, env_params: PyTree, *rest: PyTree) -> PyTree:
        if num_points == 1:
            return by_seed(learners, env_params, *rest)
        # Levels are not copied for every point: the outer vmap shares them.
        split = jax.tree.map(lambda leaf: leaf.reshape(num_points, num_seeds, *leaf.shape[1:]), (learners, rest))
        result = jax.vmap(by_seed, (0, None, *(0,) * len(rest)))(split[0], env_params, *split[1])
        return jax.tree.map(lambda leaf: leaf.reshape(num_points * num_seeds, *leaf.shape[2:]), result)

    return by_point


def level_keys(config: EnvironmentRunConfig, levels: LevelEnvironment, key: jax.Array) -> jax.Array:
    """A key of levels for each seed, `[S]`; other levels for another `seed` among the environment's options."""
    return jax.random.split(jax.random.fold_in(key, levels.level_seed), config.num_seeds)


@partial(jax.jit, static_argnames=("levels", "is_refreshed"))
def _make_levels(keys: jax.Array, levels: LevelEnvironment, is_refreshed: bool) -> PyTree:
    """Levels of each seed, `[S, ...]`; with refreshes both halves, so that one program serves all chunks."""

    def make_params(key: jax.Array) -> PyTree:
        params = levels.new_params(key)
        return levels.refresh(params, jax.random.fold_in(key, 1)) if is_refreshed else params

    # One seed after the other: what making levels takes beyond the levels is then needed once.
    return jax.lax.map(make_params, keys)


def _make_learner(config: EnvironmentRunConfig, env: Any, env_params: Any) -> tuple[EnvironmentLearner, int]:
    """The learner, and the chunks of the run; schedules over the run get its length."""
    learner = config.make_learner(env, env_params)
    num_chunks = -(-config.total_steps // (learner.steps_per_update * config.chunk_updates))
    annealed = _with_anneal(config, num_chunks * config.chunk_updates)
    return (learner if annealed is config else annealed.make_learner(env, env_params)), num_chunks


def _with_anneal(config: Any, num_updates: int) -> Any:
    """The settings with the length of the run where an algorithm leaves it to the trainer."""
    if getattr(config, "anneal_updates", 0) is None:
        return replace(config, anneal_updates=num_updates)
    ppo = getattr(config, "ppo", None)
    if ppo is not None and ppo.anneal_updates is None:
        return replace(config, ppo=replace(ppo, anneal_updates=num_updates))
    return config
