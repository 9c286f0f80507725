"""Time of one PPO step on a language model: generation, scoring, update, and total.

    python benchmarks/lm_step.py --model FOLDER [--trl-python OTHER_VENV/bin/python] [--torch-python bin/python]

All completions have full length. Compile times are reported separately; steady times are medians. Peers alternate with
ours, in the interpreters given by their flags: TRL's RLOO step (TRL no longer has a PPO trainer) and transformers'
`generate`.
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
    "model": str(Path(jaxrl_lm.__file__).parent / "assets" / "dialogue" / "model"),
    "num_answers": 2,
    "num_tokens": 3,
    "generate_tokens": 4,
    "repeats": 1,
}


def make_task(benchmark: Benchmark) -> tuple[Loaded, PPOConfig]:
    """The trainer's model and update settings, with one prompt and no early stopping."""
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
    """Generation alone, with the peer's length."""
    task = loaded.task
    sampling = replace(task.sampling, max_new_tokens=benchmark.generate_tokens)
    ids = np.tile(np.asarray(task.prompt_ids[0], np.int32), (benchmark.num_answers, 1))
    call = partial(generate, task.policy.model, loaded.params, ids, np.ones_like(ids), jax.random.key(0), sampling)
    return _measure(benchmark, call, benchmark.generate_tokens, benchmark.torch_python, "torch_generate.py")


def time_scoring(benchmark: Benchmark, loaded: Loaded, generation: Generation) -> dict[str, Any]:
    """Reference log-probabilities of the completions: one forward pass."""
    call = partial(answer_log_probs, loaded.task.policy.model, loaded.params, generation)
    return _measure(benchmark, call, benchmark.num_tokens)


def time_update(benchmark: Benchmark, loaded: Loaded, ppo: PPOConfig, generation: Generation) -> dict[str, Any]:
    """PPO's update on a fixed trajectory: one epoch, one minibatch, forward, backward and Adam."""
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
    """The trainer's full step: generation, reward on the host, scoring, update, metrics."""
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
    """First call, steady calls and tokens per second; alternates with a peer if its interpreter is given."""
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
