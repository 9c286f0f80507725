"""Labelled completions: read, split by prompt, tokenised and batched."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from jaxrl_lm import data
from jaxrl_lm.algorithms import PreferenceBatch
from jaxrl_lm.algorithms.reward_model import Objective, check_num_completions
from jaxrl_lm.data.readers import read_best_of_k, read_preferences, read_unpaired_preferences
from jaxrl_lm.data.records import BestOfK, Preference, Text, UnpairedPreference
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.pretrained import resolve_folder, tokenizer_folder
from jaxrl_lm.rewards.scoring import ScoreTokens, TextReader, plain_text

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """Completions of one prompt with their label.

    Attributes:
        prompt: their prompt.
        completions: two (a pair, the chosen one first), K (best of k) or one (thumbs).
        target: index of the preferred one; for thumbs 1 for up and 0 for down.
    """

    prompt: Text
    completions: tuple[Text, ...]
    target: int

    def texts(self) -> list[str]:
        """The completions, conversations as plain text."""
        return [plain_text(completion) for completion in self.completions]


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Labelled completions, as text and as tokens.

    Attributes:
        rows: N rows, all with K completions.
        tokens: of each row's completions, after its prompt.
        common: `common_prompt` of all rows.
    """

    rows: list[LabelledRow]
    tokens: list[list[ScoreTokens]]
    common: Text | None = None

    @property
    def targets(self) -> Int32[np.ndarray, " N"]:
        """The rows' targets."""
        return np.array([row.target for row in self.rows], np.int32)

    @property
    def groups(self) -> Int[np.ndarray, " N"]:
        """Number of each row's prompt, from 0; each row without a prompt of its own has its own number."""
        names = [
            json.dumps(row.prompt) if _has_own_prompt(row, self.common) else f"row {index}"
            for index, row in enumerate(self.rows)
        ]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([numbers[name] for name in names])

    @property
    def num_prompts(self) -> int:
        """Number of different prompts; each row without a prompt of its own counts as one."""
        return int(self.groups.max()) + 1

    @property
    def num_completions(self) -> int:
        """K."""
        return len(self.rows[0].completions)

    @property
    def num_cut(self) -> int:
        """Number of completions that are too long for the model together with their prompt."""
        return sum(tokens.is_cut for row in self.tokens for tokens in row)


def labels_tokenizer(model: str, labels_tokenizer: str | None) -> Any:
    """The tokenizer of labels that are token ids: the given one, or that of the model if it has all of their ids.

    Args:
        model: folder or hub id of the model that learns from the labels.
        labels_tokenizer: folder or hub id of the labels' tokenizer, if one is named.

    Raises:
        InputError: there is none.
    """
    if labels_tokenizer is None:
        return data.AssumedTokenizer(
            tokenizer=load_named_tokenizer("model", model),
            remedy="give their tokenizer with --labels-tokenizer (for OpenAI's files: gpt2)",
        )
    return load_named_tokenizer("labels_tokenizer", labels_tokenizer)


def load_named_tokenizer(option: str, folder_or_hub_id: str) -> Any:
    """Load a tokenizer that is not used with a model; errors name the option that it was given with.

    Raises:
        InputError: there is none.
    """
    try:
        return data.load_tokenizer(tokenizer_folder(resolve_folder(folder_or_hub_id)), vocab_size=None)
    except InputError as error:
        raise InputError(f"{option}={folder_or_hub_id!r}: {error}") from error


def read_labels(
    source: str, objective: Objective, *, limit: int | None = None, tokenizer: Any = None
) -> list[LabelledRow]:
    """Read the rows that an objective learns from.

    Args:
        source: a file or data set.
        objective: says which form the rows have.
        limit: read no further than this many records; None reads all.
        tokenizer: turns token ids into text where the labels hold such; None refuses them.

    Raises:
        InputError: the source or a row is invalid, or rows differ in their number of completions.
    """
    options = {} if objective == "binary" else {"tokenizer": tokenizer}
    rows = [_from_record(record) for record in _READERS[objective](source, limit=limit, **options)]
    sizes = sorted({len(row.completions) for row in rows})
    if len(sizes) > 1:
        raise InputError(
            f"{source}: rows have {' and '.join(map(str, sizes))} completions; give all rows the same number"
        )
    check_num_completions(objective, sizes[0])
    return rows


def common_prompt(rows: list[LabelledRow]) -> Text | None:
    """The prompt if all rows have the same one, which then does not distinguish them; otherwise None."""
    first = rows[0].prompt
    return first if all(row.prompt == first for row in rows) else None


def split_by_prompt(
    rows: list[LabelledRow], *, fraction: float, seed: int
) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """Hold out a share of the rows; all rows of a prompt are on one side.

    Rows without a prompt, or all with the same one, are held out one by one. Then training rows that share a completion
    with a held-out row are dropped, and a warning says how many.

    Args:
        rows: all rows.
        fraction: share of the prompts to hold out, at least one.
        seed: of the choice.

    Returns:
        Rows to train on and rows held out, in their order.

    Raises:
        InputError: there are not two prompts or rows to divide, or nothing is left to train on.
    """
    common = common_prompt(rows)
    training, held = data.hold_out(rows, [_group(row, common) for row in rows], fraction=fraction, seed=seed)
    shared = _shared_completions(training, held, common)
    kept = [row for row in training if _has_own_prompt(row, common) or not shared.intersection(row.texts())]
    if not kept:
        raise InputError(
            "preferences: every row without its own prompt shares a completion with a held-out one, so none is left "
            "to train on; give held-out rows with --evaluation FILE"
        )
    if len(kept) < len(training):
        _log.warning(
            "preferences: of %d training rows, %d without their own prompt share a completion with a held-out row "
            "and are dropped; give held-out rows with --evaluation FILE, or hold out fewer with a smaller "
            "--evaluation-fraction",
            *(len(training), len(training) - len(kept)),
        )
    return kept, held


def check_held_out(training: list[LabelledRow], held: list[LabelledRow], source: str) -> None:
    """Refuse held-out rows that are also training rows, and warn of completions that rows without a prompt share.

    Raises:
        InputError: a prompt (or a row, where it has none of its own) is on both sides.
    """
    common = common_prompt(training + held)
    shared = {_group(row, common) for row in training} & {_group(row, common) for row in held}
    if shared:
        raise InputError(
            f"evaluation={source!r}: {len(shared)} of its prompts are among the training prompts, such as "
            f"{sorted(shared)[0][:60]}; remove them from one of the files"
        )
    completions = _shared_completions(training, held, common)
    if completions:
        _log.warning(
            "evaluation=%r: %d of its completions are also in training rows, such as %s, so the model is evaluated "
            "on texts that it was trained on; remove their rows from one of the files",
            *(source, len(completions), excerpt(min(completions))),
        )


def tokenise(rows: list[LabelledRow], reader: TextReader, common: Text | None = None) -> LabelledSet:
    """Turn each completion, after its prompt, into tokens; `common` is `common_prompt` of all rows."""
    tokens = [[reader.encode(row.prompt, completion) for completion in row.completions] for row in rows]
    return LabelledSet(rows=rows, tokens=tokens, common=common)


def make_batch(labelled: LabelledSet, reader: TextReader, chosen: Int[np.ndarray, "A B"]) -> PreferenceBatch:
    """Rows `[num_accumulated, B]` as arrays: inputs `[num_accumulated, B, K, T]`, padded to one of few widths."""
    tokens = [each for index in chosen.flat for each in labelled.tokens[index]]
    stacked = reader.stack(tokens, reader.width(max(len(each.ids) for each in tokens)))
    shape = (*chosen.shape, labelled.num_completions)
    inputs = {name: array.reshape(*shape, array.shape[-1]) for name, array in stacked.items()}
    return PreferenceBatch(inputs=inputs, targets=labelled.targets[chosen])


def _has_own_prompt(row: LabelledRow, common: Text | None) -> bool:
    """Whether the row has a prompt, and not all rows have the same."""
    return bool(row.prompt) and row.prompt != common


def _shared_completions(training: list[LabelledRow], held: list[LabelledRow], common: Text | None) -> set[str]:
    """Completions on both sides, of rows without a prompt of their own."""
    shown, asked = (
        {text for row in rows if not _has_own_prompt(row, common) for text in row.texts()} for rows in (training, held)
    )
    return shown & asked


def _group(row: LabelledRow, common: Text | None) -> str:
    """Group of a row in a split: its prompt, or the whole row if it has no own prompt."""
    return json.dumps([row.prompt, None if _has_own_prompt(row, common) else row.completions], ensure_ascii=False)


def _from_record(record: Preference | BestOfK | UnpairedPreference) -> LabelledRow:
    if isinstance(record, Preference):
        return LabelledRow(prompt=record.prompt, completions=(record.chosen, record.rejected), target=0)
    if isinstance(record, BestOfK):
        return LabelledRow(prompt=record.prompt, completions=record.completions, target=record.best)
    return LabelledRow(prompt=record.prompt, completions=(record.completion,), target=int(record.label))


_READERS: dict[Objective, Callable[..., list[Any]]] = {
    "pairwise": read_preferences,
    "best_of_k": read_best_of_k,
    "binary": read_unpaired_preferences,
}
