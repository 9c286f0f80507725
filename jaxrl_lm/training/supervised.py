"""The host side of learning from given examples: batches, evaluation, samples, the run folder."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_lm import data, models, rollouts, storage
from jaxrl_lm.algorithms import LossFunction, LossSums, SupervisedAlgorithm, SupervisedState
from jaxrl_lm.models import CausalLM
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.training.loop import LoopConfig, run_updates
from jaxrl_lm.training.run_files import Samples, check_out, open_run, write_samples_after
from jaxrl_lm.training.supervised_config import SupervisedConfig
from jaxrl_lm.types import PyTree


@dataclass(frozen=True, kw_only=True)
class SupervisedTask:
    """What stays the same during training.

    Attributes:
        config: the settings.
        title: of the report.
        shown: metrics beside the progress bar.
        model: the module.
        tokenizer: its Hugging Face tokenizer.
        algorithm: `init` and `update`.
        loss: the loss function, for evaluation.
        num_updates: updates of the whole run.
        take_batch: the batch of update k, leaves `[num_accumulated, B, ...]`; a function of k and the seed.
        count_tokens: how many tokens of a batch are not padding.
        evaluation_batches: leaves `[B, ...]`, all of one shape.
        summarize: adds to a batch's mean metrics what is no mean, such as the perplexity.
        sample_prompts: prompts to answer before and after: text and tokens.
        fingerprints: checksums of what the run reads.
    """

    config: SupervisedConfig
    title: str
    shown: tuple[str, ...]
    model: CausalLM
    tokenizer: Any
    algorithm: SupervisedAlgorithm
    loss: LossFunction
    num_updates: int
    take_batch: Callable[[int], PyTree]
    count_tokens: Callable[[PyTree], int]
    evaluation_batches: list[PyTree]
    summarize: Callable[[dict[str, float]], dict[str, float]]
    sample_prompts: list[tuple[str, list[int]]]
    fingerprints: dict[str, int]


def train_supervised(
    config: SupervisedConfig, load_task: Callable[[], tuple[SupervisedTask, PyTree]]
) -> storage.RunFolder:
    """Train, and leave a run folder with metrics, checkpoints, plots, samples, report and model.

    Args:
        config: the settings.
        load_task: loads what stays the same, and the parameters to train.

    Raises:
        InputError: an input is not what it must be; raised before the run folder is made where it can be known then.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite.
    """
    check_out(config)
    task, params = load_task()
    folder = open_run(
        config, lambda: answer_samples(task, params, phase="before", step=0), is_extensible=config.is_extensible
    )
    loop = LoopConfig(
        num_updates=task.num_updates,
        save_every=config.save_every,
        keep_checkpoints=config.keep_checkpoints,
        shown=task.shown,
        wandb_project=config.wandb_project,
    )
    state = task.algorithm.init(params)
    state = run_updates(folder, state, make_update(task), loop, fingerprints=task.fingerprints, resume=config.resume)
    write_samples_after(folder, answer_samples(task, state.params, phase="after", step=task.num_updates))
    models.save_pretrained(folder.model_folder, task.model, state.params)
    data.save_tokenizer(task.tokenizer, folder.model_folder)
    storage.write_report(folder, title=task.title)
    return folder


def load_model(config: SupervisedConfig) -> tuple[CausalLM, PyTree, Any]:
    """The model to train, its parameters, its tokenizer.

    Raises:
        InputError: the folder holds no model, or no tokenizer that fits it.
    """
    folder = resolve_folder(config.model)
    model, params = models.from_pretrained(folder, dtype=jnp.dtype(config.dtype), is_remat=config.remat)
    return model, params, data.load_tokenizer(folder, vocab_size=model.config.vocab_size)


def updates_of(config: SupervisedConfig, num_examples: int, batch_size: int) -> int:
    """Updates of the run: as many as asked for, or those of the epochs."""
    per_update = batch_size * config.num_accumulated
    return config.num_updates or math.ceil(config.num_epochs * num_examples / per_update)


def make_update(task: SupervisedTask) -> Callable[[SupervisedState, int], tuple[SupervisedState, dict[str, float]]]:
    """One update on the host: batch, learning, evaluation where it is due, metrics."""
    learn = jax.jit(task.algorithm.update, donate_argnums=0)
    evaluate = jax.jit(task.loss)

    def update(state: SupervisedState, num_done: int) -> tuple[SupervisedState, dict[str, float]]:
        started = time.perf_counter()
        batch = task.take_batch(num_done)
        state, metrics = learn(state, batch)
        numbers = task.summarize(_as_numbers(metrics))
        seconds = time.perf_counter() - started
        numbers |= {"time/update": seconds, "time/tokens_per_second": task.count_tokens(batch) / seconds}
        num_done += 1
        if num_done % task.config.evaluate_every == 0 or num_done == task.num_updates:
            numbers |= evaluation_metrics(task, evaluate, state)
        return state, numbers

    return update


def evaluation_metrics(
    task: SupervisedTask, evaluate: Callable[..., LossSums], state: SupervisedState
) -> dict[str, float]:
    """`evaluation/...`: the metrics of a batch, as means over all held-out examples."""
    weight, totals = 0.0, dict[str, float]()
    for batch in task.evaluation_batches:
        sums = jax.device_get(evaluate(state.params, batch, state.hyperparams.loss))
        weight += float(sums.weight)
        for name, total in {"loss/total": sums.loss, **sums.metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(total)
    if not weight:
        return {}
    means = task.summarize({name: total / weight for name, total in totals.items()})
    return {_evaluation_name(name): value for name, value in means.items()}


def answer_samples(task: SupervisedTask, params: PyTree, *, phase: str, step: int) -> Samples:
    """Answers to the sample prompts, as records for samples.jsonl.

    The key is the same before and after training, so that differences come from the weights.
    """
    if not task.sample_prompts:
        return []
    texts, ids = zip(*task.sample_prompts, strict=True)
    data.warn_left_out(data.generation_defaults(task.tokenizer), is_learning=True)
    pad_token = data.padding_token(task.tokenizer)
    sampling = rollouts.SamplingConfig(
        max_new_tokens=task.config.max_new_tokens,
        stop_tokens=data.stop_token_ids(task.tokenizer, ()),
        pad_token=pad_token,
    )
    input_ids, mask = data.left_pad(list(ids), pad_id=pad_token, width=max(map(len, ids)))
    key = jax.random.key(task.config.seed)
    generation = rollouts.generate(task.model, params, jnp.asarray(input_ids), jnp.asarray(mask), key, sampling)
    answers = rollouts.decode(task.tokenizer, generation)
    return [
        {"step": step, "phase": phase, "index": index, "prompt": text, "completion": answer}
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]


def fitting_prompts(
    prompts: list[tuple[str, list[int]]], model: CausalLM, config: SupervisedConfig
) -> list[tuple[str, list[int]]]:
    """The first `num_samples` prompts that leave room for an answer; those of no token are left out."""
    longest = model.config.max_positions - config.max_new_tokens
    return [prompt for prompt in prompts if 0 < len(prompt[1]) <= longest][: config.num_samples]


def report_title(kind: str, config: SupervisedConfig) -> str:
    """What was done to which model."""
    return f"{kind} of {Path(config.model).name}"


def _as_numbers(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _evaluation_name(name: str) -> str:
    return "evaluation/loss" if name == "loss/total" else f"evaluation/{name.partition('/')[2]}"
