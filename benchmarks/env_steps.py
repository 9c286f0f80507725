"""Steps per second of a random policy in thousands of mazes, compared with other libraries' grids in the same run.

    python benchmarks/env_steps.py [--num-envs 64 1024 8192 65536] [--sizes 5 13 51 101]

Ours: procedurally generated mazes with a bank that is replaced before every timed call. Installed peers alternate with
ours: gymnax's fixed grids, Jumanji's Maze-v0, Navix, XLand-MiniGrid. Compile times are reported separately.
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import tyro
from measure import RESULTS, make_plain, write_results

from jaxrl_lm import envs
from jaxrl_lm.benchmarking.environments import MazeSteps, maze_steps, random_steps
from jaxrl_lm.benchmarking.timing import environment, seconds_of, timed, timed_in_turns


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time environment steps under a random policy.

    Attributes:
        num_envs: batch sizes to measure.
        sizes: maze sizes to measure.
        headline_envs: batch size of the comparison with peers.
        num_steps: steps per timed call.
        num_levels: levels in the bank; mazes larger than 13x13 get fewer.
        repeats: timed calls of each case.
        out: JSON file for the results; committed results are in benchmarks/results/.
        debug: tiny sizes, to test the script in seconds.
    """

    num_envs: tuple[int, ...] = (64, 512, 8192, 65536)
    sizes: tuple[int, ...] = (5, 13, 51, 101)
    headline_envs: int = 8192
    num_steps: int = 1000
    num_levels: int = 4096
    repeats: int = 7
    out: Path = RESULTS / "env_steps.json"
    debug: bool = False


DEBUG: dict[str, Any] = {
    "num_envs": (4, 8),
    "sizes": (5,),
    "headline_envs": 4,
    "num_steps": 2,
    "num_levels": 8,
    "repeats": 1,
}
Call = Callable[[], Any]


def maze_call(benchmark: Benchmark, *, size: int, observation: str, num_envs: int) -> MazeSteps:
    """Steps for one maze size, observation and batch size."""
    return maze_steps(
        size=size,
        observation=observation,
        num_envs=num_envs,
        num_steps=benchmark.num_steps,
        num_levels=num_levels(benchmark, size),
    )


def num_levels(benchmark: Benchmark, size: int) -> int:
    """Levels in the bank: fewer for mazes above 13x13, for an equal number of cells."""
    return min(benchmark.num_levels, max(2, benchmark.num_levels * 13**2 // size**2 // 2 * 2))


def gymnax_call(env_id: str, num_envs: int, num_steps: int) -> Call:
    """Steps in a gymnax environment."""
    env, params = envs.make(env_id)
    run = jax.jit(random_steps(env, num_envs, num_steps))
    return lambda: run(params, jax.random.key(0))


def jumanji_call(num_envs: int, num_steps: int) -> Call:
    """Steps in Jumanji's Maze-v0 (10x10, generated), with its auto-reset wrapper."""
    import jumanji  # pyright: ignore[reportMissingImports]
    from jumanji.wrappers import VmapAutoResetWrapper  # pyright: ignore[reportMissingImports]

    env = VmapAutoResetWrapper(jumanji.make("Maze-v0"))

    @jax.jit
    def run(key: jax.Array) -> Any:
        states, _ = env.reset(jax.random.split(key, num_envs))

        def step(states: Any, step_key: jax.Array) -> tuple[Any, jax.Array]:
            states, timestep = env.step(states, jax.random.randint(step_key, (num_envs,), 0, 4))
            return states, jnp.sum(timestep.reward) + jnp.sum(timestep.observation.walls)

        return jax.lax.scan(step, states, jax.random.split(key, num_steps))

    return lambda: run(jax.random.key(0))


def navix_call(num_envs: int, num_steps: int) -> Call:
    """Steps in Navix's FourRooms."""
    import navix  # pyright: ignore[reportMissingImports]

    env = navix.make("Navix-FourRooms-v0")

    @jax.jit
    def run(key: jax.Array) -> Any:
        start = jax.vmap(env.reset)(jax.random.split(key, num_envs))

        def step(timestep: Any, step_key: jax.Array) -> tuple[Any, jax.Array]:
            actions = jax.random.randint(step_key, (num_envs,), 0, env.action_space.maximum + 1)
            timestep = jax.vmap(env.step)(timestep, actions)
            return timestep, jnp.sum(timestep.reward)

        return jax.lax.scan(step, start, jax.random.split(key, num_steps))

    return lambda: run(jax.random.key(0))


def xland_call(num_envs: int, num_steps: int) -> Call:
    """Steps in XLand-MiniGrid's FourRooms."""
    import xminigrid  # pyright: ignore[reportMissingImports]
    from xminigrid.wrappers import GymAutoResetWrapper  # pyright: ignore[reportMissingImports]

    env, params = xminigrid.make("MiniGrid-FourRooms")
    env = GymAutoResetWrapper(env)

    @jax.jit
    def run(key: jax.Array) -> Any:
        start = jax.vmap(env.reset, (None, 0))(params, jax.random.split(key, num_envs))

        def step(timestep: Any, step_key: jax.Array) -> tuple[Any, jax.Array]:
            actions = jax.random.randint(step_key, (num_envs,), 0, env.num_actions(params))
            timestep = jax.vmap(env.step, (None, 0, 0))(params, timestep, actions)
            return timestep, jnp.sum(timestep.reward)

        return jax.lax.scan(step, start, jax.random.split(key, num_steps))

    return lambda: run(jax.random.key(0))


def peers(benchmark: Benchmark) -> dict[str, tuple[Call, int]]:
    """Each installed peer's call and its steps per environment; slow peers make fewer."""
    found: dict[str, tuple[Call, int]] = {}
    for env_id in ("FourRooms-misc", "MetaMaze-misc", "FrozenLake-v1"):
        if env_id in envs.list_ids():
            found[f"gymnax {env_id}"] = (
                gymnax_call(env_id, benchmark.headline_envs, benchmark.num_steps),
                benchmark.num_steps,
            )
    few = max(1, benchmark.num_steps // 100)
    for module, name, make_call in (
        ("jumanji", "Jumanji Maze-v0", jumanji_call),
        ("navix", "Navix FourRooms", navix_call),
        ("xminigrid", "XLand-MiniGrid FourRooms", xland_call),
    ):
        if importlib.util.find_spec(module):
            found[name] = (make_call(benchmark.headline_envs, few), few)
    return found


def compare(benchmark: Benchmark) -> dict[str, Any]:
    """Ours and every peer in alternation, million steps per second."""
    calls: dict[str, tuple[Call, int]] = {
        f"Maze-v0 13x13 {observation}": (
            maze_call(benchmark, size=13, observation=observation, num_envs=benchmark.headline_envs),
            benchmark.num_steps,
        )
        for observation in ("position", "grid", "window")
    }
    calls |= peers(benchmark)
    first = {}
    for name, (call, _) in calls.items():
        first[name] = seconds_of(call)
        print(f"{name}: first call {first[name]:.1f} s", flush=True)
    seconds = timed_in_turns({name: call for name, (call, _) in calls.items()}, repeats=benchmark.repeats)
    return {
        name: {
            "first_call_s": first[name],
            "seconds": seconds[name],
            "million_steps_per_s": benchmark.headline_envs * num_steps / seconds[name]["median"] / 1e6,
        }
        for name, (_, num_steps) in calls.items()
    }


def scale(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Million steps per second by batch size (13x13) and by maze size (8,192 environments)."""
    settings = [(13, num_envs) for num_envs in benchmark.num_envs]
    settings += [(size, benchmark.headline_envs) for size in benchmark.sizes if size != 13]
    rows = []
    for size, num_envs in settings:
        call = maze_call(benchmark, size=size, observation="position", num_envs=num_envs)
        first = seconds_of(call)
        seconds = timed(call, repeats=benchmark.repeats)
        rate = num_envs * benchmark.num_steps / seconds["median"] / 1e6
        print(f"{size}x{size}, {num_envs} environments: {rate:.2f} million steps/s", flush=True)
        rows.append(
            {
                "size": size,
                "num_envs": num_envs,
                "num_levels": num_levels(benchmark, size),
                "first_call_s": first,
                "seconds": seconds,
                "million_steps_per_s": rate,
                "program_memory_gb": call.memory_gb(),
            }
        )
    return rows


def time_levels(benchmark: Benchmark) -> dict[str, Any]:
    """13x13 levels generated per second, including moves and distances."""
    from jaxrl_lm.envs.maze.generators import GENERATORS

    results = {}
    for name in GENERATORS:
        env, _ = envs.make("Maze-v0", size=13, generator=name, num_levels=benchmark.num_levels)
        make_levels = jax.jit(env.new_params)
        seconds = timed_after_first(lambda make_levels=make_levels: make_levels(jax.random.key(1)), benchmark)
        results[name] = {"seconds": seconds, "levels_per_s": benchmark.num_levels / seconds["median"]}
    return results


def timed_after_first(call: Call, benchmark: Benchmark) -> dict[str, float]:
    """Seconds after the first call."""
    seconds_of(call)
    return timed(call, repeats=benchmark.repeats)


def plot(path: Path, results: dict[str, Any]) -> None:
    """Plot libraries, numbers of environments and maze sizes."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    rates = {name: row["million_steps_per_s"] for name, row in results["comparison"].items()}
    colors = ["#0072B2" if name.startswith("Maze-v0") else "#999999" for name in rates]
    left.bar_label(left.barh(list(rates), list(rates.values()), color=colors), fmt=" %.2f")
    left.set(xscale="log", xlabel="million steps/s", title=f"{results['setting']['headline_envs']:,} environments")
    left.set_xlim(right=4 * max(rates.values()))
    left.invert_yaxis()
    make_plain(left.xaxis)
    by_envs = [row for row in results["scaling"] if row["size"] == 13]
    middle.plot(
        [row["num_envs"] for row in by_envs], [row["million_steps_per_s"] for row in by_envs], "o-", color="#0072B2"
    )
    middle.set(xscale="log", ylim=(0, None), xlabel="environments", title="13x13 mazes, position observed")
    headline = results["setting"]["headline_envs"]
    by_size = sorted((row for row in results["scaling"] if row["num_envs"] == headline), key=lambda row: row["size"])
    right.plot([row["size"] for row in by_size], [row["million_steps_per_s"] for row in by_size], "o-", color="#0072B2")
    right.set(ylim=(0, None), xlabel="cells per side", title=f"{headline:,} mazes, position observed")
    make_plain(middle.xaxis)
    for axes in (middle, right):
        axes.set_ylabel("million steps/s")
        make_plain(axes.yaxis)
    figure.suptitle(results["environment"]["device"])
    figure.savefig(path, dpi=120)


def main(benchmark: Benchmark) -> None:
    """Measure, compare, write."""
    if benchmark.debug:
        benchmark = replace(benchmark, **DEBUG)
    results = {
        "setting": {"headline_envs": benchmark.headline_envs, "num_steps": benchmark.num_steps},
        "environment": environment(),
        "comparison": compare(benchmark),
        "levels": time_levels(benchmark),
        "scaling": scale(benchmark),
    }
    print(json.dumps(results, indent=2))
    write_results(benchmark.out, results)
    plot(benchmark.out.with_suffix(".png"), results)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
