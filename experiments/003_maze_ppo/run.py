"""PPO on mazes that are never the same twice: how many unseen mazes it solves, and how near the shortest way it stays.

All seeds are trained in one program on levels that are replaced throughout; the newest checkpoint then plays levels
that no seed has met, compared with the oracle. Writes `results.json`, `curves.png`, `policy.png` and `episode.gif` to
`runs/003_maze_ppo/`.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from jaxrl_lm import storage
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.envs.maze.environment import Maze, MazeState
from jaxrl_lm.envs.maze.rendering import animate_episode, draw_level
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import Policy, PolicyConfig, make_policy
from jaxrl_lm.training.environments.algorithms import TrainPPOConfig
from jaxrl_lm.training.environments.evaluate import evaluate_run, restore_run
from jaxrl_lm.training.environments.train import train_environment

CURVES = ("episode/return", "eval/solved", "eval/oracle_share")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """PPO on fresh mazes of one size.

    Attributes:
        out: folder for runs and results.
        size: rows and columns.
        num_seeds: trained together.
        total_steps: environment steps of each seed.
        num_envs: mazes of each seed at a time.
        observation: the whole "grid", or a "window" of 5x5 cells around the agent with the legal moves.
        memory_size: units of a GRU; 0 for none.
        hidden_sizes: of the network.
        num_epochs: of an update.
        num_test_levels: unseen levels that every seed plays at the end.
        debug: a tiny run, in seconds.
    """

    out: Path = Path("runs/003_maze_ppo")
    size: int = 7
    num_seeds: int = 5
    total_steps: int = 4_000_000
    num_envs: int = 256
    observation: Literal["grid", "window"] = "grid"
    memory_size: int = 0
    hidden_sizes: tuple[int, ...] = (512, 256)
    num_epochs: int = 4
    num_test_levels: int = 2000
    debug: bool = False


def settings(experiment: Experiment, folder: Path) -> TrainPPOConfig:
    """The training run."""
    # Who sees the whole grid sees the walls.
    has_mask = experiment.observation == "window"
    options = (f"observation={experiment.observation}", f"has_action_mask={str(has_mask).lower()}")
    config = TrainPPOConfig(
        out=str(folder),
        env="Maze-v0",
        env_options=(f"size={experiment.size}", *options, "reward=sparse", "num_levels=4096"),
        total_steps=experiment.total_steps,
        num_seeds=experiment.num_seeds,
        chunk_updates=16,
        eval_every=10,
        eval_episodes=256,
        save_every=20,
        num_envs=experiment.num_envs,
        num_steps=64 if experiment.memory_size else 32,
        policy=PolicyConfig(
            trunk=TrunkConfig(hidden_sizes=experiment.hidden_sizes, activation="relu", kind="mlp"),
            is_shared=True,
            memory_size=experiment.memory_size,
        ),
        ppo=PPOConfig(
            learning_rate=1e-3,
            num_epochs=experiment.num_epochs,
            num_minibatches=8,
            minibatch_unit="sequences" if experiment.memory_size else "steps",
            value_coefficient=0.5,
            entropy_coefficient=0.003 if experiment.memory_size else 0.01,
            max_grad_norm=0.5,
        ),
    )
    if not experiment.debug:
        return config
    return replace(
        config,
        env_options=(*config.env_options[:3], "num_levels=64", "max_steps=32"),
        total_steps=2048,
        num_envs=16,
        num_seeds=2,
        eval_episodes=16,
        policy=replace(config.policy, trunk=replace(config.policy.trunk, hidden_sizes=(16,))),
        ppo=replace(config.ppo, num_epochs=1),
    )


def summarize(config: TrainPPOConfig, experiment: Experiment) -> dict[str, Any]:
    """Every seed on unseen levels, and the interquartile means with their intervals."""
    num_levels = 16 if experiment.debug else experiment.num_test_levels
    metrics = evaluate_run(config, env_options=(), num_episodes=num_levels, seed=0).metrics
    curves = storage.read_metrics(storage.RunFolder(Path(config.out)))
    ratio_error = float(np.max(curves["ratio/first_max_error"].values))
    results: dict[str, Any] = {"settings": {name: value for name, value in asdict(experiment).items() if name != "out"}}
    for seed in range(config.num_seeds):
        results[f"seed-{seed}"] = {name: float(values[seed]) for name, values in metrics.items()}
        results[f"seed-{seed}"]["first_minibatch_ratio_error_max"] = ratio_error
    for name, values in metrics.items():
        low, high = storage.bootstrap_interval(np.asarray(values, np.float64))
        middle = float(storage.interquartile_mean(np.asarray(values, np.float64)))
        results[name] = {"interquartile_mean": middle, "interval": [float(low), float(high)]}
    results["steps_per_second"] = float(np.median(curves["time/steps_per_second"].values))
    return results


def plot_curves(config: TrainPPOConfig, path: Path) -> None:
    """Return while training, and solved share and share of the oracle's return on held-out levels."""
    seeds = storage.read_seeds(storage.RunFolder(Path(config.out)))
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    for name, panel in zip(CURVES, figure.subplots(1, len(CURVES)), strict=True):
        storage.draw_seeds(panel, seeds[name], color="#0072B2")
        panel.set(title=name, ylim=(0, 1.02))
    figure.suptitle(f"{config.num_seeds} seeds: interquartile mean and 95 % interval, {config.env_options[0]}")
    figure.savefig(path, dpi=100)


def draw_policy(config: TrainPPOConfig, folder: Path) -> None:
    """The way of seed 0 through the unseen level with the longest way of all, and values where it looked.

    Without a memory it can look from every cell, and the best moves are drawn too.
    """
    task, state, _ = restore_run(config)
    env = task.held_out_env
    assert isinstance(env, Maze)
    params, learner = jax.tree.map(lambda leaf: leaf[0], (task.held_out, state.learners))
    learned = learner.ppo.params
    policy = make_policy(config.policy, env, params)
    level = int(np.argmax(np.asarray(start_distances(params))))
    if policy.has_memory:
        way, values = play(env, params, policy, learned, level)
        actions = None
    else:
        values, actions = look(env, params, policy, learned, level)
        way = walk(params.bank, level, actions, env.source.width)
    figure = draw_level(params.bank, level, env.source.width, values=values, policy=actions, path=way)
    figure.savefig(folder / "policy.png", dpi=100)
    animate_episode(params.bank, level, env.source.width, way, folder / "episode.gif", values=values)


def look(env: Maze, params: Any, policy: Policy, learned: Any, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Value and best move in every cell, for a policy without memory."""
    position = jnp.arange(env.num_cells, dtype=jnp.int32)
    zeros = jnp.zeros_like(position)
    states = MazeState(time=zeros, level=zeros + level, position=position)
    seen = jax.vmap(env.observation, (0, None))(states, params)
    is_first = jnp.ones(position.shape, bool)
    values = policy.value(learned, seen, is_first, None)
    return np.asarray(values), np.asarray(policy.best(learned, seen, is_first, None)[0])


def play(env: Maze, params: Any, policy: Policy, learned: Any, level: int) -> tuple[list[int], np.ndarray]:
    """Cells of an episode by the best moves of a policy with memory, and its last value in each of them."""

    def step(carry: Any, time: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        position, memory = carry
        state = MazeState(time=time, level=jnp.int32(level), position=position)
        seen = jax.tree.map(lambda leaf: leaf[None], env.observation(state, params))
        is_first = (time == 0)[None]
        value = policy.value(learned, seen, is_first, memory)[0]
        actions, memory = policy.best(learned, seen, is_first, memory)
        moved, _ = env.transition(state, actions[0], params)
        return (moved.position, memory), (position, value)

    start = params.bank.starts[level].astype(jnp.int32)
    times = jnp.arange(int(params.max_steps_in_episode))
    _, (positions, seen_values) = jax.jit(lambda carry: jax.lax.scan(step, carry, times))(
        (start, policy.init_memory(1))
    )
    way = np.asarray(positions).tolist()
    goal = int(params.bank.goals[level])
    end = way.index(goal) if goal in way else len(way) - 1
    values = np.full(env.num_cells, np.nan)
    values[way[:end]] = np.asarray(seen_values)[:end]
    return way[: end + 1], values


def start_distances(params: Any) -> jax.Array:
    """Moves of the shortest way through every level, `[L]`."""
    return jnp.take_along_axis(params.bank.distances, params.bank.starts[:, None], axis=1)[:, 0]


def walk(bank: Any, level: int, actions: np.ndarray, width: int) -> list[int]:
    """Cells from the start by the best moves, until the goal, or until a cell comes again."""
    moves, goal = np.asarray(bank.moves)[level], int(bank.goals[level])
    way = [int(bank.starts[level])]
    while way[-1] != goal:
        action = int(actions[way[-1]])
        step = (-width, width, -1, 1)[action] if moves[way[-1]] >> action & 1 else 0
        if way[-1] + step in way:
            break
        way.append(way[-1] + step)
    return way


def main(experiment: Experiment) -> None:
    """Train, evaluate, draw, write."""
    out = experiment.out
    folder = out.with_name(f"{out.name}-debug") if experiment.debug else out / f"size-{experiment.size}"
    config = settings(experiment, folder / "run")
    if storage.RunFolder(folder / "run").config_file.exists():
        config = replace(config, resume=True)
    train_environment(config)
    results = summarize(config, experiment)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot_curves(config, folder / "curves.png")
    draw_policy(config, folder)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Experiment))
