"""Supervised fine-tuning of a language model: its settings, and what it reads."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jaxrl_lm import checks, data
from jaxrl_lm.algorithms.sft import make_sft
from jaxrl_lm.data import EncodedText, LanguageModeling, PackedRows, PromptCompletion
from jaxrl_lm.data.rows import try_rows
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.language_model import LoadedModel
from jaxrl_lm.training.offline.config import OfflineStageConfig
from jaxrl_lm.training.offline.task import ExampleRows, OfflineRunConfig, longest_sequence
from jaxrl_lm.types import SupervisedLearner

Example = LanguageModeling | PromptCompletion
DataForm = Literal["auto", "prompt-completion", "language-modeling"]
LossOn = Literal["completion", "all", "assistant"]

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

    TITLE: ClassVar[str] = "Supervised fine-tuning"
    EXAMPLES: ClassVar[str] = "data"
    SHOWN: ClassVar[tuple[str, ...]] = (
        "loss/total",
        "loss/perplexity",
        "evaluation/perplexity",
        "evaluation/loss",
        "time/tokens_per_second",
    )

    data: str

    def read(self, source: str) -> list[Example]:
        form = _form_of(self.data) if self.form == "auto" else self.form
        readers: dict[str, Callable[[str], list[Any]]] = {
            "prompt-completion": data.read_prompt_completions,
            "language-modeling": data.read_language_modeling,
        }
        return readers[form](source)

    def make_rows(self, examples: list[Example], loaded: LoadedModel, option: str) -> ExampleRows:
        row_length = longest_sequence("row_length", self.row_length, loaded.model.config.max_positions)
        sequences = _encode(examples, loaded.tokenizer, self.loss_on)
        rows = pack_rows(self, sequences, row_length, option)
        return ExampleRows(arrays=rows, sequences=[(each,) for each in sequences])

    def make_learner(self, model: Any, *, num_updates: int) -> SupervisedLearner:
        return make_sft(self.optimizer, model, num_updates=num_updates)

    def summarize(self, metrics: dict[str, float]) -> dict[str, float]:
        # A loss beyond 700 diverged long ago; its exponential would raise.
        return metrics | {"loss/perplexity": math.exp(min(metrics["loss/total"], 700.0))}


def pack_rows(config: SFTRunConfig, sequences: list[EncodedText], row_length: int, name: str) -> PackedRows:
    """Cut sequences to fit into rows and pack them; a warning says what was cut.

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
    """The form of the data, prompts with completions or texts, by the first row that has the columns of either.

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
    reason = first or "it holds no rows"
    raise InputError(f"{source}: no row has 'prompt' and 'completion', nor 'text' or 'messages'; {reason}")


def _encode(examples: list[Example], tokenizer: Any, loss_on: LossOn) -> list[EncodedText]:
    is_assistant_marked = loss_on == "assistant"
    return [
        data.encode_completion(each.prompt, each.completion, tokenizer, is_assistant_marked=is_assistant_marked)
        if isinstance(each, PromptCompletion)
        else data.encode_text(each.text, tokenizer, is_assistant_marked=is_assistant_marked)
        for each in examples
    ]
