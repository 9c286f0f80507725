"""The smallest TPU slices on which PPO of well-known models fits, from `jaxrl-lm plan`.

    PYTHONPATH=FOLDER_WITH_LIBTPU python benchmarks/plans.py

Compiles the trainer's programs for described slices; no TPU is needed. A model is planned with a value head, and, for
`--critics`, with a critic and a reward model of its own size as well.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from measure import RESULTS

from jaxrl_lm.benchmarking.timing import environment
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.planning.config import PlanConfig
from jaxrl_lm.training.planning.plan import Plan, make_plan, use_described_devices


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Plan PPO of several models on all generations of TPUs.

    Attributes:
        models: presets of `jaxrl-lm plan`.
        generations: of TPUs, or names of slices.
        critics: also plan these models with a critic and a reward model of their size.
        batch_size: completions per update.
        micro_batch_size: completions per forward and backward pass.
        out: JSON file for the results; a table is written beside it. Both grow with each plan.
        debug: one small model on one slice, to test the script in seconds.
    """

    models: tuple[str, ...] = ("gpt2", "smollm2-135m", "qwen3-0.6b", "qwen3-4b", "llama-3-8b", "llama-3-70b")
    generations: tuple[str, ...] = ("v4", "v5e", "v5p", "v6e", "tpu7x")
    critics: tuple[str, ...] = ("llama-3-8b",)
    batch_size: int = 256
    micro_batch_size: int | None = None
    out: Path = RESULTS / "plans.json"
    debug: bool = False


DEBUG: dict[str, Any] = {"models": ("smollm2-135m",), "generations": ("v5e-4",), "critics": (), "batch_size": 8}


def main(benchmark: Benchmark) -> None:
    """Plan, print, write."""
    benchmark = replace(benchmark, **DEBUG) if benchmark.debug else benchmark
    platform = use_described_devices(4 if benchmark.debug else 4096)
    cases = [(model, {}) for model in benchmark.models]
    cases += [(model, {"critic": "model", "reward_model": True}) for model in benchmark.critics]
    rows, plans = [], []
    benchmark.out.parent.mkdir(parents=True, exist_ok=True)
    for model, extra in cases:
        for where in benchmark.generations:
            sizes = {"batch_size": benchmark.batch_size, "micro_batch_size": benchmark.micro_batch_size}
            config = PlanConfig(model=model, slice=where, **sizes, **extra)
            try:
                plan = make_plan(config, platform)
            except InputError as error:
                rows.append(f"| {model} | {where} | {error} | | | | | |")
            else:
                plans.append({"settings": asdict(config), **asdict(plan), "fits": plan.fits})
                rows.append(row(model, bool(extra), plan))
            print(rows[-1], flush=True)
            benchmark.out.write_text(json.dumps({"environment": environment(), "plans": plans}, indent=1) + "\n")
            benchmark.out.with_suffix(".md").write_text("\n".join([HEADER, *rows]) + "\n")


HEADER = """| model | smallest slice that fits | chips | peak of a device | generate | evaluate | update | limits |
|---|---|---|---|---|---|---|---|"""


def row(model: str, has_critic: bool, plan: Plan) -> str:
    """A line of the table: times are the least that products, memory and interconnect allow."""
    seconds, limits = {}, {}
    for name, each in plan.programs.items():
        bounds = {"products": each.compute_seconds, "memory": each.memory_seconds, "network": each.network_seconds}
        limits[name] = max(bounds, key=lambda bound: bounds[bound])
        seconds[name] = bounds[limits[name]]
    name = f"{model}, critic and reward model of its size" if has_critic else model
    where = plan.slice if plan.fits else f"none ({plan.slice} is not enough)"
    share = f"{plan.peak_bytes / 1e9:.1f} of {plan.device_bytes / 1e9:.1f} GB"
    names = ("generate", "evaluate", "update")
    times = " | ".join(f"{seconds[each]:.2g} s" for each in names)
    reasons = ", ".join(limits[each] for each in names)
    return f"| {name} | {where} | {plan.num_chips} | {share} | {times} | {reasons} |"


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
