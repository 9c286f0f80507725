"""Environment steps per second in training: PPO, PQN, DQN and tabular Q-learning, alternating with other libraries.

    python benchmarks/train_steps.py [--rejax-python OTHER_VENV/bin/python] [--sb3-python THIRD_VENV/bin/python]

PPO with rejax's settings (2,048 environments x 32 steps, 4 epochs x 4 minibatches, two MLPs 64x64) is also compared
with the bare forward and backward passes of the same networks on as much data, a lower bound of the time.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import tyro
from measure import RESULTS, Peer, make_plain, timed_against, write_results

from jaxrl_lm import envs
from jaxrl_lm.algorithms.dqn import DQNConfig, make_dqn
from jaxrl_lm.algorithms.environment_ppo import EnvironmentPPOConfig, make_environment_ppo
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.algorithms.pqn import PQNConfig, make_pqn
from jaxrl_lm.algorithms.tabular import TabularConfig, make_tabular
from jaxrl_lm.benchmarking.environments import Case, TrainingCall
from jaxrl_lm.benchmarking.timing import environment, seconds_of, timed, timed_in_turns
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import make_policy

PEERS = Path(__file__).resolve().parent / "peers"
ENV = "CartPole-v1"

PPO = EnvironmentPPOConfig(
    num_envs=2048,
    num_steps=32,
    ppo=PPOConfig(num_epochs=4, num_minibatches=4, minibatch_unit="steps", value_coefficient=0.5, max_grad_norm=0.5),
)
# Stable-Baselines3's defaults for PPO, with 8 environments.
SB3_PPO = EnvironmentPPOConfig(
    num_envs=8,
    num_steps=2048,
    ppo=PPOConfig(
        learning_rate=3e-4,
        num_epochs=10,
        num_minibatches=256,
        minibatch_unit="steps",
        value_coefficient=0.5,
        max_grad_norm=0.5,
    ),
)
PQN = PQNConfig(
    num_envs=128,
    num_steps=32,
    num_epochs=2,
    num_minibatches=4,
    trunk=TrunkConfig(hidden_sizes=(64, 64), activation="relu", layer_norm=True),
)
DQN = DQNConfig(
    num_envs=128,
    steps_per_update=64,
    batch_size=128,
    learning_starts=1024,
    buffer_size=131_072,
    trunk=TrunkConfig(hidden_sizes=(64, 64), activation="relu"),
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time training.

    Attributes:
        rejax_python: interpreter with rejax, to compare with its algorithms.
        sb3_python: interpreter with Stable-Baselines3, to compare with its PPO.
        scaling: numbers of environments for PPO.
        repeats: timed calls of each case.
        out: JSON file for the results; committed results are in benchmarks/results/.
        debug: tiny sizes, to test the script in seconds.
    """

    rejax_python: str | None = None
    sb3_python: str | None = None
    scaling: tuple[int, ...] = (64, 512, 2048, 8192, 65536)
    repeats: int = 7
    out: Path = RESULTS / "train_steps.json"
    debug: bool = False


DEBUG: dict[str, Any] = {"scaling": (4, 8), "repeats": 1}


@dataclass(frozen=True, kw_only=True)
class Compared(Case):
    """A case, and the same of another library.

    Attributes:
        peer: library and program arguments for as many steps; None without a peer.
    """

    peer: tuple[str, list[str]] | None = None


def cases() -> list[Compared]:
    """All rows."""
    mlp = {"activation": "tanh", "hidden_layer_sizes": [64, 64]}
    ppo_peer = {"num_envs": 2048, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4, "agent_kwargs": mlp}
    # rejax's PQN and DQN have fixed layers: two of 64 units, as in ours here.
    pqn_peer = {"num_envs": 128, "num_steps": 32, "num_epochs": 2, "num_minibatches": 4}
    dqn_peer = {"num_envs": 128, "batch_size": 128, "buffer_size": 131_072, "fill_buffer": 1024, "num_epochs": 1}
    return [
        Compared(
            name="PPO", config=PPO, make_learner=make_environment_ppo, num_updates=4, peer=rejax("ppo", ppo_peer, 4)
        ),
        Compared(name="PQN", config=PQN, make_learner=make_pqn, num_updates=40, peer=rejax("pqn", pqn_peer, 40)),
        Compared(name="DQN", config=DQN, make_learner=make_dqn, num_updates=10, peer=rejax("dqn", dqn_peer, 640)),
        Compared(
            name="PPO, 8 environments",
            config=SB3_PPO,
            make_learner=make_environment_ppo,
            num_updates=1,
            peer=("sb3", [ENV, "8", "2048"]),
        ),
        Compared(
            name="Q-learning",
            config=TabularConfig(num_envs=1024, num_steps=128),
            make_learner=make_tabular,
            env="ChainMaze-v0",
        ),
        Compared(
            name="PPO, Maze-v0 13x13 grid",
            config=PPO,
            make_learner=make_environment_ppo,
            env="Maze-v0",
            env_options={"observation": "grid"},
            num_updates=1,
        ),
    ]


def rejax(algorithm: str, settings: dict[str, Any], num_iterations: int) -> tuple[str, list[str]]:
    """rejax with the same settings."""
    return "rejax", [algorithm, ENV, json.dumps(settings), str(num_iterations)]


def bare_call(case: Case) -> Callable[[], Any]:
    """The forward and backward passes of a PPO case alone: no environment, sampling, shuffling or optimizer."""
    env, params = envs.make(case.env)
    config = case.config
    policy = make_policy(config.policy, env, params)
    weights = policy.init(jax.random.key(0))
    size = config.num_envs * config.num_steps
    observations = jax.random.normal(jax.random.key(1), (size, *env.observation_space(params).shape))
    actions = jnp.zeros((size, 1), jnp.int32)

    def loss(weights: Any, rows: jax.Array, chosen: jax.Array) -> jax.Array:
        found = policy.evaluate(weights, rows[:, None], chosen)
        return jnp.sum(found.log_probs) + jnp.sum(found.entropies) + jnp.sum(found.values)

    def acting(weights: Any, rows: jax.Array) -> tuple[Any, Any]:
        is_first = jnp.zeros(rows.shape[0], bool)
        return weights, (policy.best(weights, rows, is_first, None)[0], policy.value(weights, rows, is_first, None))

    def learning(weights: Any, rows: jax.Array) -> tuple[Any, None]:
        grads = jax.grad(loss)(weights, rows, actions[: rows.shape[0]])
        return jax.tree.map(lambda w, g: w - 1e-9 * g, weights, grads), None

    @jax.jit
    def run(weights: Any, observations: jax.Array) -> Any:
        by_step = observations.reshape(config.num_steps, config.num_envs, -1)
        by_minibatch = observations.reshape(config.ppo.num_minibatches, -1, observations.shape[-1])

        def update(weights: Any, _: None) -> tuple[Any, Any]:
            weights, decided = jax.lax.scan(acting, weights, by_step)
            for _epoch in range(config.ppo.num_epochs):
                weights, _ = jax.lax.scan(learning, weights, by_minibatch)
            return weights, decided

        return jax.lax.scan(update, weights, None, length=case.num_updates)

    return lambda: run(weights, observations)


def measure(benchmark: Benchmark, case: Compared) -> dict[str, Any]:
    """Steady and first seconds of a case, steps per second, and the same for its peer."""
    print(f"{case.name} ...", flush=True)
    call = TrainingCall(case)
    first = seconds_of(call)
    library, arguments = case.peer or ("", [])
    python = {"rejax": benchmark.rejax_python, "sb3": benchmark.sb3_python}.get(library)
    if python:
        command = [python, str(PEERS / f"{library}_train.py"), *arguments]
        steady = timed_against(Peer(command), call, repeats=benchmark.repeats)
        steady["peer_steps_per_s"] = call.steps / steady["peer_seconds"]["median"]
    else:
        steady = {"seconds": timed(call, repeats=benchmark.repeats)}
    rate = call.steps / steady["seconds"]["median"]
    return {"first_call_s": first, "program_memory_gb": call.memory_gb(), "steps_per_s": rate, **steady}


def plot(path: Path, results: dict[str, Any]) -> None:
    """Plot ours and rejax, and PPO by number of environments."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    compared = {name: row for name, row in results["cases"].items() if "peer_steps_per_s" in row}
    for offset, key, label, color in (
        (-0.2, "steps_per_s", "jaxrl_lm", "#0072B2"),
        (0.2, "peer_steps_per_s", "rejax, Stable-Baselines3", "#999999"),
    ):
        rates = [row[key] / 1e3 for row in compared.values()]
        bars = left.bar([i + offset for i in range(len(rates))], rates, width=0.38, label=label, color=color)
        left.bar_label(bars, fmt="%.0f")
    left.set(ylabel="thousand steps/s", title=f"Training on {ENV}")
    left.set_xticks(range(len(compared)), [name.replace(", ", "\n") for name in compared])
    left.legend(loc="upper right")
    rows = results["ppo_scaling"]
    right.plot([row["num_envs"] for row in rows], [row["steps_per_s"] / 1e3 for row in rows], "o-", color="#0072B2")
    right.set(xscale="log", ylim=(0, None), xlabel="environments", ylabel="thousand steps/s", title="PPO, 32 steps")
    make_plain(right.xaxis)
    make_plain(right.yaxis)
    figure.suptitle(results["environment"]["device"])
    figure.savefig(path, dpi=120)


def debugged(case: Compared) -> Compared:
    """A case with few steps and no peer."""
    small: dict[str, Any] = {"num_envs": 4}
    if isinstance(case.config, DQNConfig):
        small |= {"batch_size": 16, "learning_starts": 64, "buffer_size": 256}
    else:
        small["num_steps"] = 8
    if isinstance(case.config, EnvironmentPPOConfig):
        small["ppo"] = replace(case.config.ppo, num_minibatches=4)
    return replace(case, config=replace(case.config, **small), num_updates=1, peer=None)


def main(benchmark: Benchmark) -> None:
    """Measure, compare, write."""
    if benchmark.debug:
        benchmark = replace(benchmark, **DEBUG)
    shown = [debugged(case) for case in cases()] if benchmark.debug else cases()
    rows = {case.name: measure(benchmark, case) for case in shown}
    ppo = shown[0]
    calls = {"training": TrainingCall(ppo), "bare": bare_call(ppo)}
    for call in calls.values():
        seconds_of(call)
    bare = timed_in_turns(calls, repeats=benchmark.repeats)
    scaling = []
    for num_envs in benchmark.scaling:
        config = EnvironmentPPOConfig(num_envs=num_envs, num_steps=32, ppo=PPO.ppo)
        case = Compared(
            name=f"PPO, {num_envs} environments", config=config, make_learner=make_environment_ppo, num_updates=4
        )
        scaling.append({"num_envs": num_envs, **measure(replace(benchmark, repeats=3), case)})
    results = {
        "environment": environment(),
        "cases": rows,
        "ppo_against_bare_passes": bare | {"ratio": bare["training"]["median"] / bare["bare"]["median"]},
        "ppo_scaling": scaling,
    }
    print(json.dumps(results, indent=2))
    write_results(benchmark.out, results)
    plot(benchmark.out.with_suffix(".png"), results)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
