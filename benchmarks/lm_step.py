"""One PPO step on a language model beside peers: TRL's RLOO step, and transformers' `generate`.

    python benchmarks/lm_step.py --model FOLDER [--trl-python OTHER_VENV/bin/python] [--torch-python bin/python]

All completions have full length. Compile times are reported separately; steady times are medians. Peers alternate with
ours, in the interpreters given by their flags (TRL no longer has a PPO trainer). `jaxrl-lm bench --suite lm` measures
ours alone, with its parts.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from measure import RESULTS, Peer, timed_against, write_results

from jaxrl_lm.algorithms import PPOConfig
from jaxrl_lm.benchmarking.config import DIALOGUE
from jaxrl_lm.benchmarking.language import PROMPT, StepCall, load_fixed, online_settings
from jaxrl_lm.benchmarking.timing import environment, seconds_of, timed
from jaxrl_lm.rollouts import generate
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.train import Loaded

PEERS = Path(__file__).resolve().parent / "peers"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time one PPO step on a language model.

    Attributes:
        model: folder or hub id; committed results use SmolLM2-135M-Instruct.
        num_answers: completions per step.
        num_tokens: tokens per completion.
        generate_tokens: tokens per completion when generation is timed alone, as in its peer.
        dtype: dtype of activations.
        rescore: whether a step recomputes old log-probabilities and values, as the trainer does by default and TRL's
            RLOO step does.
        repeats: steady runs of each part.
        trl_python: interpreter with trl and torch, to compare with TRL's RLOO step.
        torch_python: interpreter with transformers and torch, to compare with transformers' generate.
        out: JSON file for the results; committed results are in benchmarks/results/.
        debug: tiny sizes, to test the script in seconds.
    """

    model: str = os.environ.get("JAXRL_LM_SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")
    num_answers: int = 16
    num_tokens: int = 48
    generate_tokens: int = 64
    dtype: str = "float32"
    rescore: bool = False
    repeats: int = 5
    trl_python: str | None = None
    torch_python: str | None = None
    out: Path = RESULTS / "lm_step.json"
    debug: bool = False


# The dialogue model shipped with the package.
DEBUG: dict[str, Any] = {
    "model": str(DIALOGUE),
    "num_answers": 2,
    "num_tokens": 3,
    "generate_tokens": 4,
    "repeats": 1,
}


def load_task(benchmark: Benchmark) -> Loaded:
    """The trainer's model and settings, with one prompt and no early stopping."""
    common = online_settings(benchmark.model, benchmark.num_answers, benchmark.num_tokens, benchmark.dtype)
    return load_fixed(PPORunConfig, **common, ppo=PPOConfig(num_epochs=1), rescore=benchmark.rescore)


def time_generation(benchmark: Benchmark, loaded: Loaded) -> dict[str, Any]:
    """Generation alone, with the peer's length."""
    task = loaded.task
    sampling = replace(task.sampling, max_new_tokens=benchmark.generate_tokens)
    ids = np.tile(np.asarray(task.prompt_ids[0], np.int32), (benchmark.num_answers, 1))
    call = partial(generate, task.policy.model, loaded.params, ids, np.ones_like(ids), jax.random.key(0), sampling)
    sizes = map(str, (benchmark.num_answers, benchmark.generate_tokens))
    command = [benchmark.torch_python, str(PEERS / "torch_generate.py"), benchmark.model, PROMPT, *sizes]
    return _measure(benchmark, call, benchmark.generate_tokens, command)


def time_step(benchmark: Benchmark, loaded: Loaded) -> dict[str, Any]:
    """The trainer's full step: generation, reward on the host, scoring, update, metrics."""
    call = StepCall(loaded)
    script, group_size, no_stops = str(PEERS / "trl_rloo_step.py"), 4, "[]"
    sizes = map(str, (benchmark.num_answers, benchmark.num_tokens, group_size, benchmark.num_tokens))
    command = [benchmark.trl_python, script, benchmark.model, json.dumps([PROMPT]), *sizes, no_stops]
    result = _measure(benchmark, call, benchmark.num_tokens, command)
    last = call.metrics[-1]
    parts = {name: last[name] for name in ("time/generate", "time/reward", "time/learn")}
    errors = {name: value for name, value in last.items() if name.startswith("ratio/") and "max_error" in name}
    return result | {"last_step": parts, **errors}


def _measure(
    benchmark: Benchmark, call: Callable[[], Any], num_tokens: int, command: list[str | None]
) -> dict[str, Any]:
    """First call, steady calls and tokens per second; alternates with a peer if its interpreter is given."""
    first = seconds_of(call)
    given = [part for part in command if part is not None]
    if len(given) == len(command):
        steady = timed_against(Peer(given), call, repeats=benchmark.repeats)
    else:
        steady = {"seconds": timed(call, repeats=benchmark.repeats)}
    tokens = benchmark.num_answers * num_tokens
    return {"first_call_s": first, "tokens_per_s": tokens / steady["seconds"]["median"], **steady}


def main(benchmark: Benchmark) -> None:
    """Measure, compare, write."""
    benchmark = replace(benchmark, **DEBUG) if benchmark.debug else benchmark
    loaded = load_task(benchmark)
    results: dict[str, Any] = {
        "setting": {
            "model": Path(benchmark.model).name,
            "num_answers": benchmark.num_answers,
            "num_tokens": benchmark.num_tokens,
            "prompt_tokens": len(loaded.task.prompt_ids[0]),
            "generate_tokens": benchmark.generate_tokens,
            "dtype": benchmark.dtype,
            "rescore": benchmark.rescore,
            "repeats": benchmark.repeats,
        },
        "environment": environment(),
        "generate": time_generation(benchmark, loaded),
    }
    results["step"] = time_step(benchmark, loaded)
    print(json.dumps(results, indent=2))
    write_results(benchmark.out, results)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
