"""Supervised fine-tuning of a language model, from a file of examples to a model folder."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl_lm import data, storage
from jaxrl_lm.algorithms import LossSums, make_sft, sum_token_losses
from jaxrl_lm.core.checksums import checksum_arrays, checksum_value
from jaxrl_lm.data import EncodedText, LanguageModeling, PackedRows, PromptCompletion
from jaxrl_lm.data.rows import try_rows
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.supervised import (
    SupervisedTask,
    fitting_prompts,
    load_model,
    report_title,
    train_supervised,
    updates_of,
)
from jaxrl_lm.training.supervised_config import SFTConfig
from jaxrl_lm.types import PyTree

Example = LanguageModeling | PromptCompletion

SHOWN = ("loss/total", "evaluation/perplexity")
_LONGEST_ROW = 1024
_LONGEST_TEXT_PROMPT = 32  # tokens of a text that a sample begins with
_log = logging.getLogger(__name__)


def train_sft(config: SFTConfig) -> storage.RunFolder:
    """Fine-tune, and leave a run folder with metrics, checkpoints, plots, samples, report and model.

    Raises:
        InputError: an input is not what it must be; raised before the run folder is made where it can be known then.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: the loss is not finite.
    """
    return train_supervised(config, lambda: load_sft_task(config))


def load_sft_task(config: SFTConfig) -> tuple[SupervisedTask, PyTree]:
    """Load model, tokenizer and examples, and pack them.

    Returns:
        what stays the same, and the parameters to train.

    Raises:
        InputError: one of them is not what it must be.
    """
    train, held_out = read_examples(config)
    model, params, tokenizer = load_model(config)
    row_length = _row_length(config, model.config.max_positions)
    train_ids, held_out_ids = (_encode(examples, tokenizer) for examples in (train, held_out))
    rows = pack_rows(config, train_ids, row_length, "data")
    held_out_rows = pack_rows(config, held_out_ids, row_length, "evaluation") if held_out_ids else None
    num_updates = updates_of(config, len(rows.ids), config.batch_size)
    samples = [_sample_prompt(each, tokenizer) for each in (held_out_ids or train_ids)]

    def loss(params: PyTree, batch: PackedRows, _: PyTree) -> LossSums:
        return sum_token_losses(model, params, batch)

    task = SupervisedTask(
        config=config,
        title=report_title("Supervised fine-tuning", config),
        shown=SHOWN,
        model=model,
        tokenizer=tokenizer,
        algorithm=make_sft(config.optimizer, model, num_updates=num_updates),
        loss=loss,
        num_updates=num_updates,
        take_batch=_make_take_batch(config, rows),
        count_tokens=lambda batch: int(np.sum(batch.segment_ids > 0)),
        evaluation_batches=[] if held_out_rows is None else _in_batches(held_out_rows, config.batch_size),
        summarize=_with_perplexity,
        sample_prompts=fitting_prompts(samples, model, config),
        fingerprints={"data": checksum_value([train_ids, held_out_ids]), "model": checksum_arrays(params)},
    )
    return task, params


def read_examples(config: SFTConfig) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples.

    Raises:
        InputError: a file is not what it must be, or nothing is left to train on.
    """
    form = _form_of(config.data) if config.form == "auto" else config.form
    read: Callable[[str], Any] = {
        "prompt-completion": data.read_prompt_completions,
        "language-modeling": data.read_language_modeling,
    }[form]
    examples = read(config.data)
    if config.evaluation is not None:
        return examples, read(config.evaluation)
    return data.hold_out(
        examples, [_group(each) for each in examples], fraction=config.evaluation_fraction, seed=config.seed
    )


def pack_rows(config: SFTConfig, sequences: list[EncodedText], row_length: int, name: str) -> PackedRows:
    """Sequences cut to fit and packed; what was cut is said in the log.

    Raises:
        InputError: no token is left to learn.
    """
    is_loss_on_all = config.loss_on == "all"
    fitted, cut = data.fit_sequences(sequences, row_length=row_length, is_loss_on_all=is_loss_on_all)
    if any(cut):
        _log.warning(
            "%s: of %d sequences, at row_length=%d, %d texts were split, %d completions cut, and %d left out "
            "because nothing of them is to be learned",
            *(name, len(sequences), row_length, *cut),
        )
    if not fitted:
        raise InputError(f"{name}: no sequence has a token to learn within row_length={row_length}; raise it")
    lengths = np.array([len(each.ids) for each in fitted])
    plan = data.plan_rows(lengths, row_length=row_length, window=config.packing_window, seed=config.seed)
    return data.pack_sequences(fitted, plan, row_length=row_length, is_loss_on_all=is_loss_on_all)


def _form_of(source: str) -> str:
    """Prompts with completions, or texts: the first row that has the columns of either says which.

    Raises:
        InputError: the source cannot be read, or no row has them.
    """
    first = ""
    for where, row in try_rows(source, line_column="text"):
        columns = [] if isinstance(row, InputError) else [name for name, value in row.items() if value is not None]
        if {"prompt", "completion"}.issubset(columns):
            return "prompt-completion"
        if "text" in columns or "messages" in columns:
            return "language-modeling"
        has = f"{where} has: {', '.join(map(repr, columns)) or 'nothing'}"
        first = first or (str(row) if isinstance(row, InputError) else has)
    told = first or "it holds no rows"
    raise InputError(f"{source}: no row has 'prompt' and 'completion', nor 'text' or 'messages'; {told}")


def _group(example: Example) -> str:
    """What must not stand on both sides of the split: the prompt, or where there is none, all of it."""
    prompt = example.prompt if isinstance(example, PromptCompletion) else ""
    return repr(prompt or example)


def _row_length(config: SFTConfig, context: int) -> int:
    if config.row_length is None:
        return min(context, _LONGEST_ROW)
    if config.row_length > context:
        raise InputError(
            f"row_length={config.row_length}: one sequence could fill a row, but the model's context is {context} "
            "tokens; choose at most as many"
        )
    return config.row_length


def _encode(examples: list[Example], tokenizer: Any) -> list[EncodedText]:
    return [
        data.encode_completion(each.prompt, each.completion, tokenizer)
        if isinstance(each, PromptCompletion)
        else data.encode_text(each.text, tokenizer)
        for each in examples
    ]


def _sample_prompt(sequence: EncodedText, tokenizer: Any) -> tuple[str, list[int]]:
    """What a sample answers: the prompt, or the first quarter of a text."""
    num_text_tokens = min(_LONGEST_TEXT_PROMPT, math.ceil(len(sequence.ids) / 4))
    ids = sequence.ids[: sequence.num_prompt_tokens or num_text_tokens]
    return tokenizer.decode(ids), ids


def _make_take_batch(config: SFTConfig, rows: PackedRows) -> Callable[[int], PackedRows]:
    size = config.num_accumulated * config.batch_size

    def take(num_done: int) -> PackedRows:
        chosen = data.prompt_order(len(rows.ids), size, num_done, config.seed)
        return data.take_rows(rows, chosen.reshape(config.num_accumulated, config.batch_size))

    return take


def _in_batches(rows: PackedRows, batch_size: int) -> list[PackedRows]:
    """All rows in batches of one size, rows of padding behind the last."""
    num_rows = len(rows.ids)
    indices = np.arange(-(-num_rows // batch_size) * batch_size).reshape(-1, batch_size)
    return [data.take_rows(rows, np.where(batch < num_rows, batch, -1)) for batch in indices]


def _with_perplexity(metrics: dict[str, float]) -> dict[str, float]:
    # A loss beyond this diverged long ago; the exponential of it would raise.
    return metrics | {"loss/perplexity": math.exp(min(metrics["loss/total"], 700.0))}
