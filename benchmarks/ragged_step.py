"""Time of one RLOO step on prompts of different lengths whose completions end at different places, beside TRL's.

    python benchmarks/ragged_step.py --model FOLDER --trl-python OTHER_VENV/bin/python

This is the common case: rows end early, a group shares its prompt, and whatever is padded to the longest completion is
wasted. Completions end at a stop token after at least 8 tokens. Both programs draw from the same distribution, so
lengths differ from step to step and between the two, and with few repeats so do the times.
"""

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from measure import RESULTS, Peer, timed_against, write_results

from jaxrl_lm.algorithms.group_policy import GroupPolicyConfig
from jaxrl_lm.benchmarking.config import DIALOGUE
from jaxrl_lm.benchmarking.language import StepCall, online_settings
from jaxrl_lm.benchmarking.timing import environment, seconds_of, timed
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.training.online.config import RLOORunConfig
from jaxrl_lm.training.online.train import load

PROMPTS = [
    "The capital of France is",
    "My favourite recipe for a rainy day in autumn begins with",
    "Once upon a time",
    "The three laws of motion, which Isaac Newton published in 1687, say that a body",
    "In the beginning of the film we see an old man who walks along the beach with his dog, and then",
    "Water boils at",
    "She opened the letter, read it twice, put it back into its envelope, and said to her brother that",
    "A good way to learn a new language is to read books that you know already, because",
]


MICRO_BATCH = 16
"""Completions per forward and backward pass; TRL's step has the same number."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time one RLOO step on completions of different lengths.

    Attributes:
        model: folder or hub id; committed results use SmolLM2-135M-Instruct.
        group_size: completions of each of the eight prompts.
        fewest_tokens: stop tokens count from this one on.
        most_tokens: longest completion.
        stop: single-token text that ends a completion, besides the model's own stop tokens.
        rescore: whether a step recomputes the log-probabilities of the policy, as the trainer does by default.
        repeats: steady steps.
        trl_python: interpreter with trl and torch, to compare with TRL's RLOO step.
        out: JSON file for the results; committed results are in benchmarks/results/.
        debug: tiny sizes, to test the script in seconds.
    """

    model: str = os.environ.get("JAXRL_LM_SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")
    group_size: int = 8
    fewest_tokens: int = 8
    most_tokens: int = 128
    stop: str = "\n"
    rescore: bool = True
    repeats: int = 3
    trl_python: str | None = None
    out: Path = RESULTS / "ragged_step.json"
    debug: bool = False


DEBUG: dict[str, Any] = {
    "model": str(DIALOGUE),
    "group_size": 2,
    "fewest_tokens": 1,
    "most_tokens": 6,
    "stop": "e",
    "repeats": 1,
}


def load_step(benchmark: Benchmark) -> tuple[StepCall, list[int]]:
    """Our step, and the ids of the tokens that end a completion."""
    batch_size = benchmark.group_size * len(PROMPTS)
    common = online_settings(benchmark.model, batch_size, benchmark.most_tokens, "float32")
    answers = AnswerConfig(
        max_new_tokens=benchmark.most_tokens, stop=(benchmark.stop,), ignore_stops_before=benchmark.fewest_tokens - 1
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompts:
        prompts.write("\n".join(PROMPTS) + "\n")
        prompts.flush()
        settings = common | {"answers": answers, "prompts": prompts.name, "group_size": benchmark.group_size}
        settings["rescore"] = benchmark.rescore
        loaded = load(
            RLOORunConfig(**settings, policy=GroupPolicyConfig(token_weight="sum", micro_batch_size=MICRO_BATCH))
        )
    return StepCall(loaded), list(loaded.task.sampling.stop_tokens)


def main(benchmark: Benchmark) -> None:
    """Measure, compare, write."""
    benchmark = replace(benchmark, **DEBUG) if benchmark.debug else benchmark
    call, stops = load_step(benchmark)
    batch_size = benchmark.group_size * len(PROMPTS)
    first = seconds_of(call)
    if benchmark.trl_python is None:
        steady: dict[str, Any] = {"seconds": timed(call, repeats=benchmark.repeats)}
    else:
        sizes = map(str, (batch_size, benchmark.most_tokens, benchmark.group_size, benchmark.fewest_tokens))
        script = str(Path(__file__).parent / "peers" / "trl_rloo_step.py")
        peer = Peer([benchmark.trl_python, script, benchmark.model, json.dumps(PROMPTS), *sizes, json.dumps(stops)])
        steady = timed_against(peer, call, repeats=benchmark.repeats)
    parts = ("answer/length", "time/generate", "time/learn", "time/update", "ratio/rollout_max_error")
    setting = {
        name: getattr(benchmark, name)
        for name in ("group_size", "fewest_tokens", "most_tokens", "stop", "rescore", "repeats")
    }
    results = {
        "setting": setting | {"model": Path(benchmark.model).name, "prompts": len(PROMPTS), "batch_size": batch_size},
        "environment": environment(),
        "first_call_s": first,
        **steady,
        "steps": [{name: each[name] for name in parts} for each in call.metrics],
    }
    print(json.dumps(results, indent=2))
    write_results(benchmark.out, results)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
