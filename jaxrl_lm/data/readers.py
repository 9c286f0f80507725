"""Read data sets in common forms, check them row by row, and convert them to records."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jaxrl_lm.data import forms
from jaxrl_lm.data.fields import check_text, nonblank_field, number_field
from jaxrl_lm.data.misfits import SourceError, collect_records
from jaxrl_lm.data.records import BestOfK, LanguageModeling, Preference, PromptCompletion, Rating, UnpairedPreference
from jaxrl_lm.data.rows import try_rows

_LOGGER = logging.getLogger(__name__)
_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class AssumedTokenizer:
    """A tokenizer assumed for a source's token ids; it must have all of them except one (padding).

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        remedy: how to name another one, for errors.
    """

    tokenizer: Any
    remedy: str


def read_language_modeling(source: str | Path, *, limit: int | None = None) -> list[LanguageModeling]:
    """Read texts to imitate: rows with `text`, with `messages`, or of ShareGPT with `conversations`.

    As in all readers here, a row that does not fit (a broken line, a field missing or of the wrong kind, an empty
    text) is left out and listed in a warning with its line, the first ten with their reason; more than 1 % of such
    rows are an error, unless the read ended at `limit`, before the source did.

    Args:
        source: `.jsonl`, `.json` (a list of objects, or one object a line), `.csv`, `.tsv` or `.parquet`; any other
            file is plain text with one text a line; each may end in `.gz`. Or `hub:NAME[[:CONFIG]:SPLIT]`, by
            default the split `train`. Text may be in UTF-8, UTF-16 or UTF-32; tables may be separated by commas,
            semicolons, tabs or bars; names of columns may have capitals and spaces around them; pandas' index is left
            out. The limits of `jaxrl_lm.guarded.limits` hold.
        limit: read no further than this many records; None reads all.

    Returns:
        The records in the order of the source, at least one.

    Raises:
        InputError: the source cannot be read, over 1 % of its rows do not fit, or none is left.
    """
    return _read(source, _one(forms.to_language_modeling), limit=limit, line_column="text")


def read_prompt_completions(source: str | Path, *, limit: int | None = None) -> list[PromptCompletion]:
    """Read completions to imitate: rows with `prompt` and `completion`, each text or messages.

    Rows of Alpaca (`instruction`, `input`, `output`) become a user message and an assistant message.

    Args:
        source: a file or data set as for `read_language_modeling`; here and in the readers below, not plain text.
        limit: read no further than this many records; None reads all.

    Returns:
        The records in the order of the source, at least one.

    Raises:
        InputError: as `read_language_modeling`.
    """
    return _read(source, _one(forms.to_prompt_completion), limit=limit)


def read_preferences(source: str | Path, *, limit: int | None = None, tokenizer: Any = None) -> list[Preference]:
    r"""Read pairs of a better and a worse completion, text or messages, in any of these forms.

    - `prompt`, `chosen`, `rejected`.
    - `chosen` and `rejected` that both start with the prompt; the completions begin where they differ, as in TRL.
    - The same as HH dialogues; the completions begin after the last `\n\nAssistant:` that both share.
    - `chosen` and `rejected` with the prompt in `conversations` (ShareGPT) or `instruction` and `input` (Alpaca).
    - The forms of `read_best_of_k`: the best completion is paired with each different one.

    Rows with equal texts do not fit.

    Args:
        source: a file or data set as for `read_prompt_completions`.
        limit: read no further than this many pairs; None reads all.
        tokenizer: as for `read_best_of_k`.

    Returns:
        The pairs in the order of the source, at least one.

    Raises:
        InputError: as `read_language_modeling`.

    Reference: Bai et al. 2022, "Training a Helpful and Harmless Assistant with RLHF".
    """
    return _read(source, partial(forms.to_preferences, decode=make_decoder(source, tokenizer)), limit=limit)


def read_unpaired_preferences(source: str | Path, *, limit: int | None = None) -> list[UnpairedPreference]:
    """Read completions labelled good or bad: rows with `prompt`, `completion` and `label`.

    A label is true or false, 1 or 0, "good" or "bad", as JSON or as text in any case; others do not fit.

    Args:
        source: a file or data set as for `read_prompt_completions`.
        limit: read no further than this many records; None reads all.

    Returns:
        The records in the order of the source, at least one.

    Raises:
        InputError: as `read_language_modeling`.
    """
    return _read(source, _one(forms.to_unpaired_preference), limit=limit)


def read_best_of_k(source: str | Path, *, limit: int | None = None, tokenizer: Any = None) -> list[BestOfK]:
    """Read choices of the best of several completions, as OpenAI published them.

    - `query`, `sample0`, `sample1`, ..., `best` (lm-human-preferences; K = 4 there).
    - `info.post` or `info.article`, `summaries[].text`, `choice` (comparisons of summarize-from-feedback).

    Args:
        source: a file or data set as for `read_prompt_completions`.
        limit: read no further than this many records; None reads all.
        tokenizer: turns token ids into text where query and samples are such, as in OpenAI's own files of
            lm-human-preferences (GPT-2's; ids past its vocabulary are padding); a warning says so. An
            `AssumedTokenizer` is refused where it lacks more than one id. Without a tokenizer such rows do not fit.

    Returns:
        The records in the order of the source, at least one; a row whose completions are all equal does not fit.

    Raises:
        InputError: as `read_language_modeling`.

    Reference: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences"; Stiennon et al. 2020,
    "Learning to summarize from human feedback".
    """
    return _read(source, _one(partial(forms.to_best_of_k, decode=make_decoder(source, tokenizer))), limit=limit)


def read_ratings(
    source: str | Path, *, text_column: str = "text", rating_column: str = "rating", limit: int | None = None
) -> list[Rating]:
    """Read a table of texts and the numbers that people gave them.

    Args:
        source: a file or data set as for `read_prompt_completions`.
        text_column: the column that holds the text.
        rating_column: the column that holds the number, higher for better.
        limit: read no further than this many records; None reads all.

    Returns:
        The records in the order of the source, at least one.

    Raises:
        InputError: as `read_language_modeling`.
    """

    def parse(row: dict[str, Any], where: str) -> list[Rating]:
        text = check_text(nonblank_field(row, text_column, where), f"{where}, {text_column!r}")
        return [Rating(text=text, rating=number_field(row, rating_column, where))]

    return _read(source, parse, limit=limit)


def read_records(source: str | Path, parse: Callable[[dict[str, Any], str], Iterable[_Record]]) -> list[_Record]:
    """Read rows of a custom form.

    Args:
        source: a file or data set as for `read_prompt_completions`.
        parse: converts a row to records; its second argument is the position of the row, for `InputError`.

    Returns:
        The records in the order of the source, at least one.

    Raises:
        InputError: as `read_language_modeling`.
    """
    return _read(source, parse, limit=None)


def _one(parse: Callable[[dict[str, Any], str], _Record]) -> Callable[[dict[str, Any], str], list[_Record]]:
    return lambda row, where: [parse(row, where)]


def _read(
    source: str | Path,
    parse: Callable[[dict[str, Any], str], Iterable[_Record]],
    *,
    limit: int | None,
    line_column: str | None = None,
) -> list[_Record]:
    rows = try_rows(str(source), line_column=line_column)
    return collect_records(str(source), rows, parse, limit=limit)


def make_decoder(source: str | Path, tokenizer: Any) -> forms.Decode | None:
    """Make the function that turns token ids of a source into text, and warns once; None without a tokenizer.

    The function raises SourceError if an `AssumedTokenizer` lacks more than one of the ids.
    """
    if tokenizer is None:
        return None
    remedy = None
    if isinstance(tokenizer, AssumedTokenizer):
        tokenizer, remedy = tokenizer.tokenizer, tokenizer.remedy
    vocab_size = len(tokenizer)
    name = getattr(tokenizer, "name_or_path", type(tokenizer).__name__)
    is_said = False
    unknown: set[int] = set()

    def decode(ids: list[int]) -> str:
        nonlocal is_said
        if not is_said:
            _LOGGER.warning("%s: holds token ids, which are read as those of the tokenizer %s", source, name)
            is_said = True
        known = [token for token in ids if 0 <= token < vocab_size]
        unknown.update(set(ids) - set(known))
        if remedy is not None and len(unknown) > 1:
            raise SourceError(
                f"{source}: holds token ids that the tokenizer {name} does not have, such as "
                f"{' and '.join(map(str, sorted(unknown)[:2]))}, so they are another's; {remedy}"
            )
        return tokenizer.decode(known, clean_up_tokenization_spaces=False)

    return decode
