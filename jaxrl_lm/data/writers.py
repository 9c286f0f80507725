"""Write records as JSON lines that the readers can read."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxrl_lm.data.prompts import Prompt
from jaxrl_lm.data.records import (
    BestOfK,
    LanguageModeling,
    Preference,
    PromptCompletion,
    Rating,
    UnpairedPreference,
    template_columns,
)
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import write_atomically

Record = Prompt | LanguageModeling | PromptCompletion | Preference | UnpairedPreference | BestOfK | Rating


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records to a file that the reader of their form reads back unchanged. A failed write leaves no file.

    `BestOfK` becomes OpenAI's `query`, `sample0`, ..., `best`; the columns of a `Prompt` are added to its row.

    Args:
        path: a file that ends in `.jsonl` or `.jsonl.gz`; its folder exists. A file that is there is replaced.
        records: records, as the readers give them.

    Raises:
        InputError: the name ends otherwise, the file cannot be written, or a record holds what JSON or UTF-8 cannot.
    """
    path = Path(path)
    if not path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{path}: records are written as JSON lines; end its name in .jsonl or .jsonl.gz")
    content = b"".join(_line(record, index) for index, record in enumerate(records))
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}); check its folder and the free disk space") from error


def to_row(record: Record) -> dict[str, Any]:
    """The columns of a record, with the names that the readers use."""
    if isinstance(record, Prompt):
        return {"prompt": record.prompt, **record.columns}
    if isinstance(record, LanguageModeling):
        return {"text" if isinstance(record.text, str) else "messages": record.text} | template_columns(record.text)
    if isinstance(record, BestOfK):
        samples = {f"sample{index}": completion for index, completion in enumerate(record.completions)}
        return {"query": record.prompt, **samples, "best": record.best} | template_columns(record.prompt)
    return vars(record) if isinstance(record, Rating) else vars(record) | template_columns(record.prompt)


def _line(record: Record, index: int) -> bytes:
    try:
        return json.dumps(to_row(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:  # UnicodeEncodeError, of half a surrogate pair, is a ValueError
        raise InputError(
            f"record {index} (counting from 0) cannot be written as JSON ({error}); give text, numbers and lists"
        ) from error
