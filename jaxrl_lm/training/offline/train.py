"""A run that learns from examples: batches, evaluation, samples.

A new method is a file in `jaxrl_lm/algorithms/`, a file here with its settings and what it reads, and a line in
`jaxrl_lm/cli/commands.py`.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from jaxrl_lm import data, distributed, rollouts, storage
from jaxrl_lm.algorithms.supervised import LossSums, SupervisedState
from jaxrl_lm.core.checksums import checksum_arrays
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.offline.task import OfflineRunConfig, OfflineTask, count_tokens, is_evaluation_due, load_task
from jaxrl_lm.training.run import Samples, Training, Update, train, write_samples_after
from jaxrl_lm.types import PyTree


def train_offline(config: OfflineRunConfig) -> RunFolder:
    """Train, and leave a run folder with metrics, checkpoints, plots, samples, report and model; raises as `train`."""
    return train(config, lambda: training_of(load_task(config)))


def training_of(task: OfflineTask) -> Training:
    """What a run of this task does."""
    params = task.loaded.params
    return Training(
        state=distributed.init_state(task.learner.init, params),
        update=make_update(task),
        num_updates=task.num_updates,
        shown=task.config.SHOWN[:3],
        fingerprints=task.fingerprints | {"model": checksum_arrays(params)},
        samples_before=lambda: samples(task, params, phase="before", step=0),
        finish=partial(_finish, task),
    )


def make_update(task: OfflineTask) -> Update:
    """One update on the host: batch, learning, evaluation where it is due, metrics."""
    learn = distributed.jit_update(task.learner.update)
    loss = distributed.counted(jax.jit(task.learner.loss))

    def update(state: PyTree, num_done: int) -> tuple[PyTree, dict[str, float]]:
        started = time.perf_counter()
        batch = task.take_batch(num_done)
        state, metrics = learn(state, distributed.place_batch(batch, num_leading=1))
        numbers = task.config.summarize({name: float(value) for name, value in jax.device_get(metrics).items()})
        seconds = time.perf_counter() - started
        numbers |= {"time/update": seconds, "time/tokens_per_second": count_tokens(batch) / seconds}
        if is_evaluation_due(task.config, num_done + 1, task.num_updates):
            numbers |= evaluation_metrics(task, loss, state)
        return state, numbers

    return update


def evaluation_metrics(task: OfflineTask, loss: Callable[..., LossSums], state: SupervisedState) -> dict[str, float]:
    """`evaluation/...`: the metrics of a batch, as means over all held-out examples."""
    weight, totals = 0.0, dict[str, float]()
    for batch in task.evaluation_batches:
        sums = jax.device_get(loss(state.params, distributed.place_batch(batch), state.hyperparams.loss))
        weight += float(sums.weight)
        for name, total in {"loss/total": sums.loss, **sums.metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(total)
    if not weight:
        return {}
    means = task.config.summarize({name: total / weight for name, total in totals.items()})
    return {_evaluation_name(name): value for name, value in means.items()}


def samples(task: OfflineTask, params: PyTree, *, phase: str, step: int) -> Samples:
    """Completions of the sample prompts, as records for samples.jsonl.

    The key is the same before and after training, so that differences come from the weights.
    """
    if not task.sample_prompts:
        return []
    texts, ids = zip(*task.sample_prompts, strict=True)
    tokenizer = task.loaded.tokenizer
    data.warn_left_out(data.generation_defaults(tokenizer), is_learning=True)
    pad_token = data.padding_token(tokenizer)
    sampling = rollouts.SamplingConfig(
        max_new_tokens=task.config.max_new_tokens,
        stop_tokens=data.stop_token_ids(tokenizer, ()),
        pad_token=pad_token,
    )
    input_ids, mask = data.left_pad(list(ids), pad_id=pad_token, width=max(map(len, ids)))
    key = jax.random.key(task.config.seed)
    generation = distributed.on_host(rollouts.generate(task.loaded.model, params, input_ids, mask, key, sampling))
    return [
        {"step": step, "phase": phase, "index": index, "prompt": text, "completion": completion}
        for index, (text, completion) in enumerate(zip(texts, rollouts.decode(tokenizer, generation), strict=True))
    ]


def _finish(task: OfflineTask, folder: RunFolder, state: SupervisedState) -> None:
    write_samples_after(folder, samples(task, state.params, phase="after", step=task.num_updates))
    task.loaded.save(folder.model_folder, state.params)
    storage.write_report(folder, title=f"{task.config.TITLE} of {Path(task.config.model).name}")


def _evaluation_name(name: str) -> str:
    return "evaluation/loss" if name == "loss/total" else f"evaluation/{name.partition('/')[2]}"
