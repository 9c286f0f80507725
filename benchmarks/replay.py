"""One round of replay (add a step of all environments, sample a batch), compared with flashbax if installed.

    python benchmarks/replay.py

CartPole steps, 131,072 transitions from 128 environments, batches of 128, uniform and prioritised; with priorities, a
round also updates those of the batch. Rounds are chained in one `scan`.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from measure import RESULTS, write_results

from jaxrl_lm.algorithms.replay import ReplayConfig, Step, add, init_replay, sample, set_priorities
from jaxrl_lm.benchmarking.timing import environment, seconds_of, timed_in_turns

DISCOUNT = 0.99


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time a replay memory.

    Attributes:
        num_envs: steps added per round.
        batch_size: transitions sampled per round.
        buffer_size: capacity in transitions.
        num_rounds: rounds per timed call.
        repeats: timed calls of each case.
        out: JSON file for the results; committed results are in benchmarks/results/.
        debug: tiny sizes, to test the script in seconds.
    """

    num_envs: int = 128
    batch_size: int = 128
    buffer_size: int = 131_072
    num_rounds: int = 200
    repeats: int = 7
    out: Path = RESULTS / "replay.json"
    debug: bool = False


DEBUG = {"num_envs": 4, "batch_size": 4, "buffer_size": 64, "num_rounds": 8, "repeats": 1}

Round = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


def our_rounds(benchmark: Benchmark, is_prioritized: bool) -> tuple[Any, Round]:
    """A full memory, and one round with it."""
    config = ReplayConfig(buffer_size=benchmark.buffer_size, is_prioritized=is_prioritized)
    zeros = jnp.zeros(benchmark.num_envs)
    step = Step(
        observations=jnp.zeros((benchmark.num_envs, 4)),
        actions=zeros.astype(jnp.int32),
        rewards=zeros,
        terminated=zeros.astype(bool),
        truncated=zeros.astype(bool),
        next_observations=jnp.zeros((benchmark.num_envs, 4)),
    )

    def one_round(replay: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        draw_key, priority_key = jax.random.split(key)
        replay = add(config, replay, step)
        batch = sample(config, replay, draw_key, benchmark.batch_size, DISCOUNT)
        if is_prioritized:
            replay = set_priorities(replay, batch.indices, jax.random.uniform(priority_key, batch.indices.shape))
        return replay, jnp.sum(batch.observations) + jnp.sum(batch.next_observations)

    return init_replay(config, step), one_round


def flashbax_rounds(benchmark: Benchmark, is_prioritized: bool) -> tuple[Any, Round]:
    """The same with flashbax's flat buffers, which store single steps and sample pairs of them."""
    import flashbax  # pyright: ignore[reportMissingImports]

    sizes = {
        "max_length": benchmark.buffer_size,
        "min_length": benchmark.batch_size,
        "sample_batch_size": benchmark.batch_size,
        "add_batch_size": benchmark.num_envs,
    }
    if is_prioritized:
        buffer = flashbax.make_prioritised_flat_buffer(**sizes, priority_exponent=0.6)
    else:
        buffer = flashbax.make_flat_buffer(**sizes)
    item = {"observation": jnp.zeros(4), "action": jnp.zeros((), jnp.int32), "reward": jnp.zeros(()), "done": False}
    item = jax.tree.map(jnp.asarray, item)
    steps = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (benchmark.num_envs, *leaf.shape)), item)

    def one_round(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        draw_key, priority_key = jax.random.split(key)
        state = buffer.add(state, steps)
        batch = buffer.sample(state, draw_key)
        if is_prioritized:
            state = buffer.set_priorities(
                state, batch.indices, jax.random.uniform(priority_key, (benchmark.batch_size,))
            )
        pair = batch.experience
        return state, jnp.sum(pair.first["observation"]) + jnp.sum(pair.second["observation"])

    return buffer.init(item), one_round


def chained(benchmark: Benchmark, start: Any, one_round: Round) -> Callable[[], Any]:
    """A call of many in-place rounds on a full memory."""

    def rounds(memory: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return jax.lax.scan(one_round, memory, jax.random.split(key, benchmark.num_rounds))

    run = jax.jit(rounds, donate_argnums=0)
    holder = [start]

    def call() -> jax.Array:
        holder[0], sums = run(holder[0], jax.random.key(0))
        return sums

    for _ in range(-(-benchmark.buffer_size // (benchmark.num_envs * benchmark.num_rounds))):
        seconds_of(call)
    return call


def main(benchmark: Benchmark) -> None:
    """Measure, compare, write."""
    if benchmark.debug:
        benchmark = replace(benchmark, **DEBUG)
    makers = {"ours": our_rounds}
    versions = {}
    if importlib.util.find_spec("flashbax"):
        makers["flashbax"] = flashbax_rounds
        versions["flashbax"] = importlib.metadata.version("flashbax")
    calls = {
        f"{name}, {kind}": chained(benchmark, *make(benchmark, kind == "prioritised"))
        for kind in ("uniform", "prioritised")
        for name, make in makers.items()
    }
    seconds = timed_in_turns(calls, repeats=benchmark.repeats)
    results = {
        "environment": environment() | {"peers": versions},
        "rounds": {
            name: {"seconds": row, "microseconds_a_round": row["median"] / benchmark.num_rounds * 1e6}
            for name, row in seconds.items()
        },
    }
    print(json.dumps(results, indent=2))
    write_results(benchmark.out, results)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
