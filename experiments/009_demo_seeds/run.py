"""The demo, over several seeds: does the gold reward rise each time?

Runs `jaxrl-lm demo` with each seed, and writes `results.json` and `curves.png` to `runs/009_demo_seeds/`; run the same
command again to continue.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from jaxrl_lm import rewards, storage
from jaxrl_lm.cli.demo import DemoConfig, demo_chain
from jaxrl_lm.training.reward_model.config import NormalisationConfig
from jaxrl_lm.training.rlhf.train import run_rlhf, simulated_annotator

COLUMNS = ("gold", "proxy", "kl")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The demo with each seed.

    Attributes:
        out: folder for the chains.
        seeds: one chain each.
        debug: one seed, two updates of PPO.
    """

    out: Path = Path("runs/009_demo_seeds")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    debug: bool = False


def run_seed(experiment: Experiment, seed: int) -> tuple[dict[str, Any], storage.RunFolder]:
    """Results of a demo, one row per policy, and its PPO run."""
    config = demo_chain(DemoConfig(out=str(experiment.out / f"seed-{seed}"), seed=seed))
    if experiment.debug:
        config = replace(
            config,
            num_compared=4,
            labels=replace(config.labels, num_pairs=20),
            sft=replace(config.sft, num_updates=1),
            reward_model=replace(config.reward_model, num_updates=2, normalisation=NormalisationConfig(num_samples=16)),
            ppo=replace(config.ppo, num_updates=2, batch_size=8),
        )
    assert config.labels.gold is not None
    judge = simulated_annotator(rewards.load_reward(config.labels.gold), noise=config.labels.noise, seed=seed)
    chain = run_rlhf(config, judge).folder
    return json.loads((chain.path / "results.json").read_text()), storage.RunFolder(chain.path / "round-1" / "ppo")


def main(experiment: Experiment) -> None:
    """Run missing seeds, then write figures."""
    if experiment.debug:
        experiment = replace(experiment, out=experiment.out.with_name(f"{experiment.out.name}-debug"), seeds=(0,))
    found = {seed: run_seed(experiment, seed) for seed in experiment.seeds}
    tables = [table for table, _ in found.values()]
    runs = [run for _, run in found.values()]
    results: dict[str, Any] = {
        policy: {name: over_seeds([table[policy][name]["mean"] for table in tables]) for name in COLUMNS}
        for policy in tables[0]
    }
    last = list(tables[0])[-1]
    results["rise of gold over SFT"] = over_seeds(
        [table[last]["gold"]["mean"] - table["SFT"]["gold"]["mean"] for table in tables]
    )
    errors = [max(storage.read_metrics(run)["ratio/first_max_error"].values) for run in runs]
    results["checks"] = {"first_minibatch_ratio_error_max": max(errors)}
    (experiment.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(runs, experiment.out / "curves.png")
    print(json.dumps(results, indent=2))


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Interquartile mean over seeds, its 95 % bootstrap interval, and every seed."""
    found = np.array(values)
    low, high = storage.bootstrap_interval(found)
    return {
        "estimate": float(storage.interquartile_mean(found)),
        "low": float(low),
        "high": float(high),
        "seeds": values,
    }


def plot(runs: list[storage.RunFolder], path: Path) -> None:
    """Proxy, gold and KL of every seed."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    titles = {"reward/mean": "proxy", "watched/gold": "gold", "kl/answer": "KL to the reference, nats a completion"}
    for panel, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for run in runs:
            curve = storage.read_metrics(run)[name]
            panel.plot(curve.steps, curve.values, linewidth=0.9)
        panel.set(title=title, xlabel="update of PPO")
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Experiment))
