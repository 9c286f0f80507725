"""How long one PPO step on a language model takes: generation, scoring, update, and the whole.

    python benchmarks/lm_step.py --model FOLDER [--trl-python OTHER_VENV/bin/python] [--torch-python bin/python]

All answers run to their full length. Compile times stand apart from steady times, which are medians. Peers are
measured turn by turn with ours, in the interpreters that their flags name: TRL's RLOO step (TRL has no PPO trainer any
more) and transformers' `generate`.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from measure import RESULTS, Peer, environment, first_call, timed, timed_against, write_results

import jaxrl_lm
from jaxrl_lm.algorithms import PPOConfig, make_ppo
from jaxrl_lm.rollouts import AnswerConfig, Generation, answer_log_probs, generate, make_evaluate, token_trajectory
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.train import Loaded, load, make_update

PEERS = Path(__file__).resolve().parent / "peers"
PROMPT = "The capital of France is a city that many people like to visit because"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time one PPO step on a language model.

    Attributes:
        model: folder or hub id; the figures of record are SmolLM2-135M-Instruct's.
        num_answers: answers a step.
        num_tokens: tokens an answer.
        generate_tokens: tokens an answer where generation is timed alone, as its peer is.
        dtype: of activations.
        rescore: whether a step computes old log-probabilities and values again; the trainer's default does, and so
            does TRL's RLOO step.
        repeats: steady runs of each part.
        trl_python: interpreter with trl and torch, to run TRL's RLOO step beside.
        torch_python: interpreter with transformers and torch, to run transformers' generate beside.
        out: JSON file of the results; the committed ones are in benchmarks/results/.
        debug: sizes so small that a run takes seconds: to try the script, not to measure.
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


# The dialogue model that the package ships.
DEBUG: dict[str, Any] = {
    "model": str(Path(jaxrl_lm.__file__).parent / "assets" / "dialogue" / "model"),
    "num_answers": 2,
    "num_tokens": 3,
    "generate_tokens": 4,
    "repeats": 1,
}


def make_task(benchmark: Benchmark) -> tuple[Loaded, PPOConfig]:
    """What the trainer loads, on one prompt that never stops early, and the settings of its update."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompts:
        prompts.write(PROMPT + "\n")
        prompts.flush()
        config = PPORunConfig(
            model=benchmark.model,
            prompts=prompts.name,
            reward="words",
            out="unused",
            batch_size=benchmark.num_answers,
            answers=AnswerConfig(max_new_tokens=benchmark.num_tokens),
            ppo=PPOConfig(num_epochs=1),
            rescore=benchmark.rescore,
            dtype=benchmark.dtype,  # pyright: ignore[reportArgumentType]
        )
        loaded = load(config)
    task = replace(loaded.task, sampling=replace(loaded.task.sampling, stop_tokens=()))
    return replace(loaded, task=task), config.ppo


def time_generation(benchmark: Benchmark, loaded: Loaded) -> dict[str, Any]:
    """Generation alone, at the peer's length."""
    task = loaded.task
    sampling = replace(task.sampling, max_new_tokens=benchmark.generate_tokens)
    ids = np.tile(np.asarray(task.prompt_ids[0], np.int32), (benchmark.num_answers, 1))
    call = partial(generate, task.policy.model, loaded.params, ids, np.ones_like(ids), jax.random.key(0), sampling)
    return _measure(benchmark, call, benchmark.generate_tokens, benchmark.torch_python, "torch_generate.py")


def time_scoring(benchmark: Benchmark, loaded: Loaded, generation: Generation) -> dict[str, Any]:
    """The reference's log-probabilities of the answers: one forward pass."""
    call = partial(answer_log_probs, loaded.task.policy.model, loaded.params, generation)
    return _measure(benchmark, call, benchmark.num_tokens)


def time_update(benchmark: Benchmark, loaded: Loaded, ppo: PPOConfig, generation: Generation) -> dict[str, Any]:
    """PPO's update on a given trajectory: one epoch, one minibatch, forward and backward and Adam."""
    algorithm = make_ppo(ppo, make_evaluate(loaded.task.policy.model))
    actions = generation.sequences[:, -benchmark.num_tokens :]
    rewards = np.random.default_rng(0).normal(size=actions.shape).astype(np.float32)
    trajectory = token_trajectory(
        generation,
        rewards,
        generation.response_mask,
        log_probs=generation.log_probs,
        values=generation.values,
        discount=1.0,
        trace_decay=0.95,
    )
    update = jax.jit(algorithm.update, donate_argnums=0)
    holder = [algorithm.init(jax.tree.map(jax.numpy.copy, loaded.params), jax.random.key(0))]

    def call() -> Any:
        holder[0], metrics = update(holder[0], trajectory, jax.random.key(0))
        return metrics, holder[0]

    return _measure(benchmark, call, benchmark.num_tokens)


def time_step(benchmark: Benchmark, loaded: Loaded) -> dict[str, Any]:
    """The trainer's whole step: generation, reward on the host, scoring, update, metrics."""
    update = make_update(loaded)
    holder, metrics = [loaded.init_state()], {}

    def call() -> Any:
        holder[0], numbers = update(holder[0], 0)
        metrics.update(numbers)
        return holder[0]

    result = _measure(benchmark, call, benchmark.num_tokens, benchmark.trl_python, "trl_rloo_step.py")
    parts = {name: metrics[name] for name in ("time/generate", "time/reward", "time/learn")}
    errors = {name: value for name, value in metrics.items() if name.startswith("ratio/") and "max_error" in name}
    return result | {"last_step": parts, **errors}


def _measure(
    benchmark: Benchmark, call: Callable[[], Any], num_tokens: int, peer_python: str | None = None, peer: str = ""
) -> dict[str, Any]:
    """First call, steady calls and tokens a second; turn by turn with a peer where its interpreter is named."""
    first = first_call(call)
    if peer_python:
        command = [peer_python, str(PEERS / peer), benchmark.model, PROMPT, str(benchmark.num_answers), str(num_tokens)]
        steady = timed_against(Peer(command), call, repeats=benchmark.repeats)
    else:
        steady = {"seconds": timed(call, repeats=benchmark.repeats)}
    tokens = benchmark.num_answers * num_tokens
    return {"first_call_s": first, "tokens_per_s": tokens / steady["seconds"]["median"], **steady}


def main(benchmark: Benchmark) -> None:
    """Measure, compare, write."""
    benchmark = replace(benchmark, **DEBUG) if benchmark.debug else benchmark
    loaded, ppo = make_task(benchmark)
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
    chosen = np.zeros(benchmark.num_answers, int)
    generation = loaded.task.answer(loaded.params, chosen, jax.random.key(0))
    results["score"] = time_scoring(benchmark, loaded, generation)
    results["update"] = time_update(benchmark, loaded, ppo, generation)
    results["step"] = time_step(benchmark, loaded)
    print(json.dumps(results, indent=2))
    write_results(benchmark.out, results)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
