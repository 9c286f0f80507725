"""Supervised fine-tuning of a language model: its settings, and what it loads."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jaxrl_lm import checks, data
from jaxrl_lm.algorithms.sft import make_sft
from jaxrl_lm.core.checksums import checksum_value
from jaxrl_lm.data import EncodedText, LanguageModeling, PackedRows, PromptCompletion
from jaxrl_lm.data.rows import try_rows
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.language_model import load_model
from jaxrl_lm.training.offline.config import OfflineRunConfig, OfflineStageConfig
from jaxrl_lm.training.offline.task import OfflineTask, fitting_prompts, in_batches, rows_of_update

Example = LanguageModeling | PromptCompletion
DataForm = Literal["auto", "prompt-completion", "language-modeling"]
LossOn = Literal["completion", "all", "assistant"]

_LONGEST_ROW = 1024
_LONGEST_TEXT_PROMPT = 32  # tokens of a text that a sample begins with
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SFTStageConfig(OfflineStageConfig):
    """Settings of supervised fine-tuning.

    Attributes:
        form: whether the data are prompts with completions or texts; "auto" uses the first row that has the columns of
            either.
        loss_on: compute the loss on the "completion" only, or on "all" tokens; texts always use all. "assistant" uses
            only assistant turns of completions and messages.
        batch_size: rows per batch.
        row_length: tokens per row; several sequences are packed into one, longer ones are split (texts) or truncated
            (completions). None uses the model's context, at most 1,024.
        packing_window: sequences that are packed together; larger windows pack tighter.
    """

    form: DataForm = "auto"
    loss_on: LossOn = "completion"
    row_length: int | None = None
    packing_window: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 1, "packing_window")
        checks.at_least(self, 2, "row_length", why="each token is predicted from earlier ones")


@dataclass(frozen=True, kw_only=True)
class SFTRunConfig(SFTStageConfig, OfflineRunConfig):
    """Supervised fine-tuning of a language model on completions or texts, packed into rows.

    Attributes:
        data: rows with `prompt` and `completion`, or with `text` or `messages`: .jsonl, .json, .csv, .tsv, .parquet,
            each also .gz, or hub:NAME[[:CONFIG]:SPLIT].
    """

    SHOWN: ClassVar[tuple[str, ...]] = (
        "loss/total",
        "loss/perplexity",
        "evaluation/perplexity",
        "evaluation/loss",
        "time/tokens_per_second",
    )

    data: str

    def load(self) -> OfflineTask:
        return load_sft(self)


def load_sft(config: SFTRunConfig) -> OfflineTask:
    """Load model, tokenizer and examples, and pack them.

    Raises:
        InputError: one of them is not what it must be.
    """
    train, held_out = read_examples(config)
    loaded = load_model(config.model, dtype=config.dtype, remat=config.remat)
    tokenizer = loaded.tokenizer
    row_length = _row_length(config, loaded.model.config.max_positions)
    train_ids, held_out_ids = (_encode(examples, tokenizer, config.loss_on) for examples in (train, held_out))
    rows = pack_rows(config, train_ids, row_length, "data")
    evaluation_batches = []
    if held_out_ids:
        held_out_rows = pack_rows(config, held_out_ids, row_length, "evaluation")
        chosen = in_batches(len(held_out_rows.ids), config.batch_size)
        evaluation_batches = [data.take_rows(held_out_rows, batch) for batch in chosen]
    num_updates = config.updates_of(len(rows.ids))
    samples = [_sample_prompt(each, tokenizer) for each in (held_out_ids or train_ids)]
    return OfflineTask(
        config=config,
        title="Supervised fine-tuning",
        loaded=loaded,
        learner=make_sft(config.optimizer, loaded.model, num_updates=num_updates),
        num_updates=num_updates,
        take_batch=lambda num_done: data.take_rows(rows, rows_of_update(config, len(rows.ids), num_done)),
        count_tokens=lambda batch: int(np.sum(batch.segment_ids > 0)),
        evaluation_batches=evaluation_batches,
        sample_prompts=fitting_prompts(samples, loaded, config),
        fingerprints={"data": checksum_value([train_ids, held_out_ids])},
        summarize=_with_perplexity,
    )


def read_examples(config: SFTRunConfig) -> tuple[list[Example], list[Example]]:
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


def pack_rows(config: SFTRunConfig, sequences: list[EncodedText], row_length: int, name: str) -> PackedRows:
    """Sequences cut to fit and packed; what was cut is said in the log.

    Raises:
        InputError: no token is left to learn.
    """
    is_loss_on_all = config.loss_on == "all"
    fitted, cut = data.fit_sequences(sequences, row_length=row_length, is_loss_on_all=is_loss_on_all)
    if any(cut):
        _log.warning(
            "%s: of %d sequences, at row_length=%d, %d texts were split, %d completions truncated, and %d dropped "
            "because they had no target tokens",
            *(name, len(sequences), row_length, *cut),
        )
    if not fitted:
        raise InputError(f"{name}: no sequence has a target token within row_length={row_length}; raise it")
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
    """Group of an example in the split: its prompt, or all of it if there is none."""
    prompt = example.prompt if isinstance(example, PromptCompletion) else ""
    return repr(prompt or example)


def _row_length(config: SFTRunConfig, context: int) -> int:
    if config.row_length is None:
        return min(context, _LONGEST_ROW)
    if config.row_length > context:
        raise InputError(
            f"row_length={config.row_length}: one sequence could fill a row, but the model's context is {context} "
            "tokens; choose at most that many"
        )
    return config.row_length


def _encode(examples: list[Example], tokenizer: Any, loss_on: LossOn) -> list[EncodedText]:
    is_assistant_marked = loss_on == "assistant"
    return [
        data.encode_completion(each.prompt, each.completion, tokenizer, is_assistant_marked=is_assistant_marked)
        if isinstance(each, PromptCompletion)
        else data.encode_text(each.text, tokenizer, is_assistant_marked=is_assistant_marked)
        for each in examples
    ]


def _sample_prompt(sequence: EncodedText, tokenizer: Any) -> tuple[str, list[int]]:
    """What a sample answers: the prompt, or the first quarter of a text."""
    num_text_tokens = min(_LONGEST_TEXT_PROMPT, math.ceil(len(sequence.ids) / 4))
    ids = sequence.ids[: sequence.num_prompt_tokens or num_text_tokens]
    return tokenizer.decode(ids), ids


def _with_perplexity(metrics: dict[str, float]) -> dict[str, float]:
    # A loss beyond this diverged long ago; the exponential of it would raise.
    return metrics | {"loss/perplexity": math.exp(min(metrics["loss/total"], 700.0))}
