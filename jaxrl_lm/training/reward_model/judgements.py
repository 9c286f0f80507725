"""Judged answers: read, split by prompt, tokenised, dealt out in batches."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from jaxrl_lm import data
from jaxrl_lm.algorithms import PreferenceBatch
from jaxrl_lm.algorithms.reward_model import Objective, check_num_answers
from jaxrl_lm.data.readers import read_best_of_k, read_preferences, read_unpaired_preferences
from jaxrl_lm.data.records import BestOfK, Preference, Text, UnpairedPreference
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.rewards.scoring import ScoreTokens, TextReader, plain_text

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Answers to one prompt, and what people said of them.

    Attributes:
        prompt: what they answer.
        completions: two (a pair, the chosen one first), K (best of k) or one (thumbs).
        target: index of the preferred one; for thumbs 1 for up and 0 for down.
    """

    prompt: Text
    completions: tuple[Text, ...]
    target: int

    def texts(self) -> list[str]:
        """The answers, conversations as plain text."""
        return [plain_text(completion) for completion in self.completions]


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """Judged answers, as text and as tokens.

    Attributes:
        rows: N of them, all with K answers.
        tokens: of each row's answers, behind its prompt.
        common: of all judgements, as `common_prompt` says it.
    """

    rows: list[Judgement]
    tokens: list[list[ScoreTokens]]
    common: Text | None = None

    @property
    def targets(self) -> Int32[np.ndarray, " N"]:
        """The rows' targets."""
        return np.array([row.target for row in self.rows], np.int32)

    @property
    def groups(self) -> Int[np.ndarray, " N"]:
        """Which prompt each row belongs to, from 0; a row without one of its own is a group of its own."""
        names = [
            json.dumps(row.prompt) if _has_own_prompt(row, self.common) else f"row {index}"
            for index, row in enumerate(self.rows)
        ]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([numbers[name] for name in names])

    @property
    def num_prompts(self) -> int:
        """Different prompts; each row without one of its own counts as one."""
        return int(self.groups.max()) + 1

    @property
    def num_answers(self) -> int:
        """K."""
        return len(self.rows[0].completions)

    @property
    def num_cut(self) -> int:
        """Answers that are too long for the model together with their prompt."""
        return sum(tokens.is_cut for row in self.tokens for tokens in row)


def labels_tokenizer(model: str, labels_tokenizer: str | None) -> Any:
    """The tokenizer whose ids the labels may hold: the one named, else the model's, if they can be of that.

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
    """`data.load_tokenizer` for token ids that no model is to read; errors name the option that asked for it.

    Raises:
        InputError: there is none.
    """
    try:
        return data.load_tokenizer(resolve_folder(folder_or_hub_id), vocab_size=None)
    except InputError as error:
        raise InputError(f"{option}={folder_or_hub_id!r}: {error}") from error


def read_judgements(
    source: str, objective: Objective, *, limit: int | None = None, tokenizer: Any = None
) -> list[Judgement]:
    """Read the rows that an objective learns from.

    Args:
        source: a file or data set.
        objective: says which form the rows have.
        limit: read no further than this many records; None reads all.
        tokenizer: turns token ids into text where the labels hold such; None refuses them.

    Raises:
        InputError: the source or a row is not what it must be, or rows differ in their number of answers.
    """
    options = {} if objective == "binary" else {"tokenizer": tokenizer}
    rows = [_from_record(record) for record in _READERS[objective](source, limit=limit, **options)]
    sizes = sorted({len(row.completions) for row in rows})
    if len(sizes) > 1:
        raise InputError(
            f"{source}: rows have {' and '.join(map(str, sizes))} completions; give all rows the same number"
        )
    check_num_answers(objective, sizes[0])
    return rows


def common_prompt(rows: list[Judgement]) -> Text | None:
    """The prompt that all rows have; it tells none of them apart, so they count as without one. None for several."""
    first = rows[0].prompt
    return first if all(row.prompt == first for row in rows) else None


def split_by_prompt(rows: list[Judgement], *, fraction: float, seed: int) -> tuple[list[Judgement], list[Judgement]]:
    """Hold out some rows; no prompt is on both sides.

    Rows without a prompt, or all with the same, are held out one by one, and then no answer that a held-out row shows
    stands in training: rows that hold one are left out, and the log says how many.

    Args:
        rows: all judgements.
        fraction: share of the prompts to hold out, at least one.
        seed: of the choice.

    Returns:
        Rows to train on and rows held out, in their order.

    Raises:
        InputError: there are not two prompts or rows to divide, or nothing is left to train on.
    """
    common = common_prompt(rows)
    training, held = data.hold_out(rows, [_group(row, common) for row in rows], fraction=fraction, seed=seed)
    shared = _shared_answers(training, held, common)
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


def check_held_out(training: list[Judgement], held: list[Judgement], source: str) -> None:
    """Refuse held-out rows that training shows as well, and warn of single answers that rows without a prompt share.

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
    answers = _shared_answers(training, held, common)
    if answers:
        _log.warning(
            "evaluation=%r: %d of its completions are also in training rows, such as %s, so the model is evaluated "
            "on texts that it was trained on; remove their rows from one of the files",
            *(source, len(answers), excerpt(min(answers))),
        )


def tokenise(rows: list[Judgement], reader: TextReader, common: Text | None = None) -> Judgements:
    """Turn each answer, behind its prompt, into tokens; `common` is `common_prompt` of all judgements."""
    tokens = [[reader.encode(row.prompt, completion) for completion in row.completions] for row in rows]
    return Judgements(rows=rows, tokens=tokens, common=common)


def make_batch(judgements: Judgements, reader: TextReader, chosen: Int[np.ndarray, "A B"]) -> PreferenceBatch:
    """Rows `[num_accumulated, B]` as arrays: inputs `[num_accumulated, B, K, T]`, padded to one of few widths."""
    tokens = [each for index in chosen.flat for each in judgements.tokens[index]]
    stacked = reader.stack(tokens, reader.width(max(len(each.ids) for each in tokens)))
    shape = (*chosen.shape, judgements.num_answers)
    inputs = {name: array.reshape(*shape, array.shape[-1]) for name, array in stacked.items()}
    return PreferenceBatch(inputs=inputs, targets=judgements.targets[chosen])


def _has_own_prompt(row: Judgement, common: Text | None) -> bool:
    """Whether the row's prompt tells it from others: there is one, and not all judgements have it."""
    return bool(row.prompt) and row.prompt != common


def _shared_answers(training: list[Judgement], held: list[Judgement], common: Text | None) -> set[str]:
    """Answers that rows without a prompt of their own show on both sides."""
    shown, asked = (
        {text for row in rows if not _has_own_prompt(row, common) for text in row.texts()} for rows in (training, held)
    )
    return shown & asked


def _group(row: Judgement, common: Text | None) -> str:
    """Group of a row in a split: its prompt, or the whole row if it has no own prompt."""
    return json.dumps([row.prompt, None if _has_own_prompt(row, common) else row.completions], ensure_ascii=False)


def _from_record(record: Preference | BestOfK | UnpairedPreference) -> Judgement:
    if isinstance(record, Preference):
        return Judgement(prompt=record.prompt, completions=(record.chosen, record.rejected), target=0)
    if isinstance(record, BestOfK):
        return Judgement(prompt=record.prompt, completions=record.completions, target=record.best)
    return Judgement(prompt=record.prompt, completions=(record.completion,), target=int(record.label))


_READERS: dict[Objective, Callable[..., list[Any]]] = {
    "pairwise": read_preferences,
    "best_of_k": read_best_of_k,
    "binary": read_unpaired_preferences,
}
