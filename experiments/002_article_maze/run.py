"""The article's maze: six states in a row, learned by five tabular algorithms and by PPO, against the exact values.

The article's settings: gamma 0.9, alpha 0.1, epsilon 0.1, 1,000 episodes. All seeds of an algorithm are trained in one
program; its table is compared after every step with the exact action values that it should find: those of the best
policy, and for SARSA and expected SARSA those of the best policy that explores with the same epsilon. Writes
`results.json` and `curves.png` to `runs/002_article_maze/`.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxrl_lm.algorithms.environment_ppo import EnvironmentPPOConfig, make_environment_ppo
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.algorithms.tabular import TabularConfig, make_tabular
from jaxrl_lm.envs.chain import ChainMaze, ChainState
from jaxrl_lm.types import EnvironmentLearner

GAMMA, EPSILON = 0.9, 0.1
TOLERANCE = 0.05
BEST_RETURN = -3.0  # four steps of -1, then +1
RIGHT = 3
# One step per update, to record every step and episode.
ARTICLE = TabularConfig(
    learning_rate=0.1, discount=GAMMA, epsilon_start=EPSILON, epsilon_end=EPSILON, num_envs=1, num_steps=1
)
TABULAR = {
    "Q-learning": replace(ARTICLE, kind="q-learning"),
    "double Q-learning": replace(ARTICLE, kind="double-q"),
    "Q(lambda)": replace(ARTICLE, kind="q-lambda", trace_decay=0.9),
    "expected SARSA": replace(ARTICLE, kind="expected-sarsa"),
    "SARSA": replace(ARTICLE, kind="sarsa"),
    "SARSA, falling step size": replace(ARTICLE, kind="sarsa", learning_rate=1.0, visit_power=0.7),
}
COLORS = dict(zip(TABULAR, ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"), strict=True))
PPO = EnvironmentPPOConfig(
    num_envs=16,
    num_steps=16,
    discount=GAMMA,
    ppo=PPOConfig(learning_rate=3e-3, num_epochs=4, num_minibatches=4, minibatch_unit="steps", value_coefficient=0.5),
)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The article's maze by six algorithms.

    Attributes:
        out: folder for results.
        seeds: seeds of each algorithm, all trained together.
        num_episodes: episodes in the learning curves, as in the article.
        num_steps: environment steps of each run.
        debug: few steps and two seeds, in seconds.
    """

    out: Path = Path("runs/002_article_maze")
    seeds: tuple[int, ...] = tuple(range(32))
    num_episodes: int = 1000
    num_steps: int = 60_000
    debug: bool = False


class Run(NamedTuple):
    """Results of one algorithm: S seeds, N updates.

    Attributes:
        returns: mean return of the episodes that ended in the update, `[S, N]`; NaN where none did.
        errors: largest distance to the exact value over the entries visited so far, `[S, N]`; 0 for PPO.
        is_optimal: whether the greedy policy goes right from every state, bool `[S, N]`.
        ratio_errors: largest |ratio - 1| of the first minibatch, `[S, N]`; 0 for tables.
        state: of the learner, leaves `[S, ...]`.
        steps_per_update: environment steps.
    """

    returns: np.ndarray
    errors: np.ndarray
    is_optimal: np.ndarray
    ratio_errors: np.ndarray
    state: Any
    steps_per_update: int


def exact_values(env: ChainMaze, epsilon: float) -> np.ndarray:
    """Action values `[S, A]` of the best policy that explores with `epsilon`, by value iteration on the environment."""
    params = env.default_params
    num_states, num_actions = env.observation_space(params).n, env.num_actions
    states, actions = (grid.reshape(-1) for grid in np.indices((num_states, num_actions)))
    before = ChainState(time=jnp.zeros_like(states), position=jnp.asarray(states))  # pyright: ignore[reportArgumentType]
    after, rewards = jax.vmap(env.transition, (0, 0, None))(before, jnp.asarray(actions), params)
    is_end = np.asarray(jax.vmap(env.is_terminated, (0, None))(after, params))
    q = np.zeros((num_states, num_actions))
    for _ in range(1000):
        values = epsilon * q.mean(axis=1) + (1 - epsilon) * q.max(axis=1)
        targets = np.asarray(rewards, np.float64) + GAMMA * np.where(is_end, 0.0, values[np.asarray(after.position)])
        q = targets.reshape(q.shape)
    q[-1] = 0.0  # nothing is done in the goal
    return q


def train(learner: EnvironmentLearner, params: Any, seeds: tuple[int, ...], num_steps: int, exact: Any) -> Run:
    """All seeds together, with the figures of every update.

    Args:
        learner: the algorithm.
        params: of the environment.
        seeds: one run each.
        num_steps: environment steps of a run.
        exact: the table it should find, `[S, A]`; None where there is no table.
    """
    corridor = jnp.arange(5, dtype=jnp.int32)
    is_first = jnp.ones(5, bool)

    def step(state: Any, _: None) -> tuple[Any, tuple[jax.Array, ...]]:
        state, metrics = learner.update(state, params)
        if exact is None:
            actions, _ = learner.act(state, corridor, is_first, learner.init_memory(5), state.key)
            return state, (
                metrics["episode/return"],
                jnp.zeros(()),
                jnp.all(actions == RIGHT),
                metrics["ratio/first_max_error"],
            )
        # Ties do not count: right must be better than everything else.
        q = jnp.mean(state.q_values, axis=0)[:5]
        is_optimal = jnp.all(q[:, RIGHT] > jnp.max(q[:, :RIGHT], axis=1))
        error = jnp.max(jnp.where(state.visits > 0, jnp.abs(state.q_values - exact), 0.0))
        return state, (metrics["episode/return"], error, is_optimal, jnp.zeros(()))

    def run(key: jax.Array) -> tuple[Any, tuple[jax.Array, ...]]:
        return jax.lax.scan(step, learner.init(key, params), None, length=num_steps // learner.steps_per_update)

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    state, columns = jax.jit(jax.vmap(run))(keys)
    returns, errors, is_optimal, ratio_errors = map(np.asarray, columns)
    return Run(returns, errors, is_optimal, ratio_errors, state, learner.steps_per_update)


def episode_returns(run: Run, num_episodes: int) -> np.ndarray:
    """Returns of the first episodes, `[S, E]`; E is `num_episodes`, or what the shortest run had."""
    rows = [row[~np.isnan(row)] for row in run.returns]
    length = min(num_episodes, *(len(row) for row in rows))
    return np.stack([row[:length] for row in rows])


def steps_until(is_reached: np.ndarray, steps_per_update: int) -> list[int | None]:
    """Environment steps after which it holds to the end, for each seed; None where it does not hold at the end."""
    updates = [len(row) - int(np.argmin(row[::-1])) if not row.all() else 0 for row in is_reached]
    return [
        (update + 1) * steps_per_update if row[-1] else None for row, update in zip(is_reached, updates, strict=True)
    ]


def seed_figures(runs: dict[str, Run], seeds: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """The figures of each seed."""
    results: dict[str, dict[str, Any]] = {f"seed-{seed}": {} for seed in seeds}
    for name, run in runs.items():
        columns: dict[str, list[Any]] = {
            "is_optimal": run.is_optimal[:, -1].tolist(),
            "steps_until_optimal": steps_until(run.is_optimal, run.steps_per_update),
        }
        if name in TABULAR:
            columns |= {
                "max_error": run.errors[:, -1].tolist(),
                "steps_until_within_tolerance": steps_until(run.errors < TOLERANCE, run.steps_per_update),
                "entries_visited": (np.asarray(run.state.visits).sum(axis=1) > 0).sum(axis=(1, 2)).tolist(),
            }
        for column, values in columns.items():
            for record, value in zip(results.values(), values, strict=True):
                record[f"{name}/{column}"] = value
    for record, errors in zip(results.values(), runs["PPO"].ratio_errors, strict=True):
        record["first_minibatch_ratio_error_max"] = float(errors.max())
    return results


def summarize(runs: dict[str, Run], by_seed: dict[str, dict[str, Any]], num_episodes: int) -> dict[str, Any]:
    """The figures that the README quotes: medians and worst cases over seeds."""
    summary: dict[str, Any] = {}
    for name, run in runs.items():
        figures: dict[str, Any] = {"seeds_with_optimal_policy": int(run.is_optimal[:, -1].sum())}
        columns = ("max_error", "steps_until_within_tolerance", "steps_until_optimal", "entries_visited")
        for column in columns:
            values: list[Any] = [record.get(f"{name}/{column}") for record in by_seed.values()]
            if None not in values:
                figures |= {column: {"median": float(np.median(values)), "min": min(values), "max": max(values)}}
        if name in TABULAR:
            returns = episode_returns(run, num_episodes)
            last_updates = (np.cumsum(~np.isnan(run.returns), axis=1) < returns.shape[1]).sum(axis=1)
            figures["median_steps_of_the_episodes"] = float(np.median(last_updates + 1))
            errors = np.take_along_axis(run.errors, last_updates[:, None], axis=1)
            figures["max_error_after_the_episodes"] = {"median": float(np.median(errors)), "max": float(errors.max())}
            last = returns[:, -100:].mean(axis=1)
        else:
            last = np.nanmean(run.returns[:, -10:], axis=1)
        quartiles = np.percentile(last, [25, 50, 75])
        figures["return_at_the_end"] = dict(zip(("lower_quartile", "median", "upper_quartile"), quartiles, strict=True))
        summary[name] = figures
    return summary


def _band(axes: Axes, x: np.ndarray, rows: np.ndarray, color: str, label: str) -> None:
    """Median over seeds, and the band between the quartiles."""
    lower, middle, upper = np.nanpercentile(rows, [25, 50, 75], axis=0)
    axes.fill_between(x, lower, upper, color=color, alpha=0.18, linewidth=0)
    axes.plot(x, middle, color=color, linewidth=1.6, label=label)


def plot_article(axes: Axes, run: Run, num_episodes: int) -> None:
    """Q-learning's return in every episode, as the article plots it."""
    returns = episode_returns(run, num_episodes)
    _band(axes, np.arange(1, returns.shape[1] + 1), returns, COLORS["Q-learning"], "Q-learning, median and quartiles")
    axes.axhline(BEST_RETURN, color="0.35", linestyle="--", linewidth=1, label="shortest way")
    axes.set(title="The article's run: return of each episode", xlabel="episode", ylabel="return", xscale="log")
    axes.legend(loc="lower right")


def plot_side_by_side(axes: Axes, runs: dict[str, Run]) -> None:
    """Returns against environment steps, in bins as long as an update of PPO."""
    bin_size = runs["PPO"].steps_per_update
    for name, run in runs.items():
        num_updates = bin_size // run.steps_per_update
        num_bins = min(run.returns.shape[1] // num_updates, 50)
        bins = run.returns[:, : num_bins * num_updates].reshape(len(run.returns), num_bins, num_updates)
        ended = ~np.isnan(bins)
        means = np.where(ended, bins, 0.0).sum(axis=-1) / np.where(ended.any(axis=-1), ended.sum(axis=-1), np.nan)
        _band(axes, (np.arange(num_bins) + 1) * bin_size, means, COLORS.get(name, "black"), name)
    axes.axhline(BEST_RETURN, color="0.35", linestyle="--", linewidth=1)
    axes.set(title="Side by side: return while exploring", xlabel="environment steps", ylabel="return")
    axes.set(xscale="log", ylim=(-40, -1))
    axes.legend(loc="lower right", fontsize=8)


def plot_errors(axes: Axes, runs: dict[str, Run]) -> None:
    """Distance to the exact values."""
    for name in TABULAR:
        errors = runs[name].errors
        steps = np.unique(np.geomspace(1, errors.shape[1], 400).astype(int))
        _band(axes, steps, np.maximum(errors[:, steps - 1], 1e-6), COLORS[name], name)
    axes.axhline(TOLERANCE, color="0.35", linestyle="--", linewidth=1)
    axes.text(1.2, TOLERANCE * 0.65, f"{TOLERANCE}", color="0.35", fontsize=9)
    axes.set(
        title="Largest error over the entries visited (colours as below)",
        xlabel="environment steps",
        ylabel="|Q - exact value|",
    )
    axes.set(xlabel="environment steps", xscale="log", yscale="log", ylim=(1e-4, 10))


def plot_table(axes: Axes, run: Run, exact: np.ndarray) -> None:
    """Q-learning's table, median over seeds, with the exact values in brackets."""
    learned = np.median(np.asarray(run.state.q_values)[:, 0, :5], axis=0).T
    axes.imshow(learned, cmap="viridis", aspect="auto")
    for (action, state), value in np.ndenumerate(learned):
        color = "black" if value > -0.8 else "white"
        text = f"{value:.2f}\n({exact[state, action]:.2f})"
        axes.text(state, action, text, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(5), [f"s{state}" for state in range(5)])
    axes.set_yticks(range(4), ["up", "down", "left", "right"])
    axes.set(title="Q-learning's values at the end, and (exact)")


def plot(runs: dict[str, Run], exact: np.ndarray, num_episodes: int, path: Path) -> None:
    """The README's figure."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    (article, errors), (side_by_side, table) = figure.subplots(2, 2)
    plot_article(article, runs["Q-learning"], num_episodes)
    plot_errors(errors, runs)
    plot_side_by_side(side_by_side, runs)
    plot_table(table, runs["Q-learning"], exact)
    for axes in (article, errors, side_by_side):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(experiment: Experiment) -> None:
    """Train everything, then write figures and curves."""
    if experiment.debug:
        seeds = experiment.seeds[:2]
        experiment = replace(
            experiment,
            out=experiment.out.with_name(f"{experiment.out.name}-debug"),
            seeds=seeds,
            num_episodes=50,
            num_steps=2_000,
        )
    experiment.out.mkdir(parents=True, exist_ok=True)
    env, num_steps = ChainMaze(), experiment.num_steps
    params = env.default_params
    runs: dict[str, Run] = {}
    for name, config in TABULAR.items():
        exact = exact_values(env, EPSILON if "sarsa" in config.kind else 0.0)
        runs[name] = train(make_tabular(config, env, params), params, experiment.seeds, num_steps, exact)
    runs["PPO"] = train(make_environment_ppo(PPO, env, params), params, experiment.seeds, num_steps, None)
    by_seed = seed_figures(runs, experiment.seeds)
    summary = summarize(runs, by_seed, experiment.num_episodes)
    (experiment.out / "results.json").write_text(json.dumps({"summary": summary} | by_seed, indent=2) + "\n")
    plot(runs, exact_values(env, 0.0), experiment.num_episodes, experiment.out / "curves.png")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Experiment))
