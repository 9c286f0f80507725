"""Tokens per second of a language model: generation, scoring, updates, and whole steps of PPO and GRPO."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxrl_lm import distributed, rollouts
from jaxrl_lm.algorithms import PPOConfig
from jaxrl_lm.algorithms.group_policy import GroupPolicyConfig
from jaxrl_lm.benchmarking.config import BenchConfig
from jaxrl_lm.benchmarking.measuring import Bench, Figure
from jaxrl_lm.benchmarking.timing import summary
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.training.online.config import GRPORunConfig, OnlineRunConfig, PPORunConfig
from jaxrl_lm.training.online.train import Loaded, load, make_update

PROMPT = "The capital of France is a city that many people like to visit because"
UNIT = "tokens/s"


def measure_language(config: BenchConfig, bench: Bench) -> dict[str, Figure]:
    """The figures of the suite lm; tokens are those of completions, which all have full length."""
    common = online_settings(config.model_name, config.num_answers, config.num_tokens, config.dtype)
    loaded = load_fixed(PPORunConfig, **common, ppo=PPOConfig(num_epochs=1))
    found = {
        "lm/generate": measure_generation(config, bench, loaded),
        "lm/score": measure_scoring(config, bench, loaded),
        **measure_step(config, bench, loaded, "ppo"),
    }
    del loaded
    grouped = load_fixed(GRPORunConfig, **common, policy=GroupPolicyConfig(), group_size=config.group_size)
    return found | measure_step(config, bench, grouped, "grpo")


def online_settings(model: str, num_answers: int, num_tokens: int, dtype: str) -> dict[str, Any]:
    """Settings that runs of PPO and GRPO have in common."""
    answers = AnswerConfig(max_new_tokens=num_tokens)
    return {
        "model": model,
        "reward": "words",
        "out": "unused",
        "batch_size": num_answers,
        "answers": answers,
        "dtype": dtype,
    }


def load_fixed(kind: Callable[..., OnlineRunConfig], **settings: Any) -> Loaded:
    """What a run of these settings loads, with one prompt and completions that end at their full length.

    Raises:
        InputError: there is no such model.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompts:
        prompts.write(PROMPT + "\n")
        prompts.flush()
        loaded = load(kind(prompts=prompts.name, **settings))
    return replace(loaded, task=replace(loaded.task, sampling=replace(loaded.task.sampling, stop_tokens=())))


def measure_generation(config: BenchConfig, bench: Bench, loaded: Loaded) -> Figure:
    """Generation alone; the share of the bandwidth is that of reading weights and cache once per step."""
    task = loaded.task
    ids = np.tile(np.asarray(task.prompt_ids[0], np.int32), (config.num_answers, 1))

    def call() -> Any:
        generation = rollouts.generate(
            task.policy.model, loaded.params, ids, np.ones_like(ids), jax.random.key(0), task.sampling
        )
        rollouts.count_generation(task.policy.model, generation)
        return generation

    return bench.measure(
        "lm/generate",
        call,
        amount=float(config.num_answers * config.num_tokens),
        unit=UNIT,
        dtype=config.dtype,
        num_bytes=config.num_tokens * bytes_of_step(loaded, config.num_answers, ids.shape[1] + config.num_tokens),
    )


def bytes_of_step(loaded: Loaded, num_rows: int, num_slots: int) -> float:
    """Bytes that a decoding step reads: the weights in the dtype of activations, and the slots of the cache."""
    model = loaded.task.policy.model
    size = model.dtype.itemsize
    weights = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    cache = jax.eval_shape(lambda: model.config.init_cache(num_rows, num_slots, model.dtype))
    slots = sum(leaf.size for leaf in jax.tree.leaves((cache.keys, cache.values)))
    return float(size * (weights + slots))


def measure_scoring(config: BenchConfig, bench: Bench, loaded: Loaded) -> Figure:
    """Log-probabilities of the completions: one forward pass."""
    task = loaded.task
    generation = task.answer(loaded.params, np.zeros(config.num_answers, int), jax.random.key(0))
    score = distributed.counted(
        jax.jit(lambda params, generation: rollouts.answer_log_probs(task.policy.model, params, generation))
    )
    tokens = float(config.num_answers * config.num_tokens)
    return bench.measure(
        "lm/score", lambda: score(loaded.params, generation), amount=tokens, unit=UNIT, dtype=config.dtype
    )


class StepCall:
    """The trainer's full steps: generation, reward on the host, update, metrics; each continues from the last.

    Attributes:
        metrics: of every step.
    """

    def __init__(self, loaded: Loaded) -> None:
        """Make the first state; it is not copied where the learner needs no reference."""
        self._update, self._state = make_update(loaded), loaded.init_state()
        self.metrics: list[dict[str, float]] = []

    def __call__(self) -> Any:
        """One step."""
        self._state, numbers = self._update(self._state, 0)
        self.metrics.append(numbers)
        return self._state


def measure_step(config: BenchConfig, bench: Bench, loaded: Loaded, algorithm: str) -> dict[str, Figure]:
    """The whole step of an algorithm, and of it the update alone, as its trainer times it."""
    call, tokens, task = StepCall(loaded), float(config.num_answers * config.num_tokens), loaded.task
    name = f"lm/{algorithm}-step"
    step = bench.measure(name, call, amount=tokens, unit=UNIT, dtype=config.dtype)
    errors = {key: value for key, value in call.metrics[0].items() if key.startswith("ratio/") and "max_error" in key}
    learning = [numbers["time/learn"] for numbers in call.metrics]
    seconds = summary(learning[1 : 1 + bench.repeats])
    generating = rollouts.generation_flops(
        task.policy.model,
        np.ones((config.num_answers, config.num_tokens)),
        len(task.prompt_ids[0]),
        per_prompt=loaded.learner.answers_per_prompt,
    )
    flops = step.flops - generating
    update = Figure(
        value=tokens / seconds["median"],
        unit=UNIT,
        seconds=seconds,
        first_call=learning[0],
        flops=flops,
        shares=bench.shares(flops, seconds["median"], config.dtype),
    )
    return {name: replace(step, facts=errors), f"lm/{algorithm}-update": update}
