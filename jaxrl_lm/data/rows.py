"""Rows of a data set, one at a time, from any file format or the hub, each with its position."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxrl_lm import guarded
from jaxrl_lm.data import tables
from jaxrl_lm.data.columns import tidy_row
from jaxrl_lm.data.dialects import to_trl
from jaxrl_lm.errors import InputError

HUB_PREFIX = "hub:"

RowOrError = tuple[str, dict[str, Any] | InputError]
"""The position of a row, for errors, and its columns, or its error if other rows can still be read."""


def try_rows(source: str, *, line_column: str | None, required: str | None = None) -> Iterator[RowOrError]:
    """Read rows lazily, and continue after broken ones as long as the source itself is readable.

    Text may be in UTF-8, UTF-16 or UTF-32. Names of columns are tidied (`columns.tidy_names`), and rows of ShareGPT and
    Alpaca get the columns of TRL's forms (`dialects.to_trl`).

    Args:
        source: a file, or `hub:NAME[[:CONFIG]:SPLIT]`.
        line_column: the column that a line of plain text becomes; None refuses plain text.
        required: a column that the header of a table must name; rows of files without one are not looked at.

    Yields:
        The position of each row, and its columns by name or its error.

    Raises:
        InputError: the source is not there or is not of its form.
    """
    rows = _hub_rows(source) if source.startswith(HUB_PREFIX) else _file_rows(source, required, line_column)
    for where, row in rows:
        yield where, row if isinstance(row, InputError) else to_trl(tidy_row(row, required), required)


def excerpt(value: Any) -> str:
    """A value for an error message, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _hub_rows(source: str) -> Iterator[RowOrError]:
    name, config, split = _hub_parts(source)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f"{source}: data sets of the hub need the package datasets; {tables.DATA_EXTRA}") from error
    try:
        dataset = load_dataset(name, config, split=split)
    except Exception as error:  # the hub, the network, the files' formats: each with errors of its own
        raise InputError(
            f"{source}: the data set cannot be loaded ({type(error).__name__}: {error}); "
            "check its name, its split (hub:NAME:SPLIT), its configuration (hub:NAME:CONFIG:SPLIT) and the network"
        ) from error
    for index, row in enumerate(dataset, 1):
        yield f"{source}, row {index}", dict(row)


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of a data set of the hub; a slice in brackets belongs to the split."""
    parts = re.split(r":(?![^\[]*\])", source.removeprefix(HUB_PREFIX))
    if not parts[0] or len(parts) > 3:
        raise InputError(f"{source!r} names no data set; write hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")
    config = parts[1] if len(parts) == 3 else ""
    split = parts[-1] if len(parts) > 1 else ""
    return parts[0], config or None, split or "train"


def _file_rows(source: str, required: str | None, line_column: str | None) -> Iterator[RowOrError]:
    path = Path(source)
    name = path.name.lower()
    is_gzipped = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    try:
        if path.is_dir():
            raise InputError(f"{source!r} is a folder; give a file")
        if not path.exists():
            raise InputError(f"{source!r} does not exist; check the path, or write hub:NAME for a data set of the hub")
        with gzip.open(path) if is_gzipped else path.open("rb") as file:
            if suffix == ".parquet":
                yield from tables.parquet_rows(file, source, required)
            elif suffix in READERS:
                yield from READERS[suffix](guarded.open_utf8(file, source), source, required)
            else:
                yield from _text_rows(file, source, line_column)
    except (OSError, EOFError, zlib.error) as error:
        what = "is not a whole gzip file or cannot be read" if is_gzipped else "cannot be read"
        raise InputError(f"{source}: {what} ({error}); check the file, or create it again") from error


def _text_rows(file: io.BufferedIOBase, source: str, column: str | None) -> Iterator[RowOrError]:
    if column is None:
        known = ", ".join([*READERS, ".parquet"])
        raise InputError(f"{source}: plain text has no columns; give a file that ends in one of {known}")
    for line, text in guarded.try_lines(guarded.open_utf8(file, source), source):
        if isinstance(text, InputError):
            yield f"{source}, line {line}", text
        elif text.strip():
            yield f"{source}, line {line}", {column: text.rstrip("\r\n")}


def _jsonl_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[RowOrError]:
    return _json_line_rows(guarded.try_lines(file, source), source)


def _json_line_rows(lines: Iterable[tuple[int, str | InputError]], source: str) -> Iterator[RowOrError]:
    remedy = "write one object a line"
    for line, text in lines:
        where = f"{source}, line {line}"
        if isinstance(text, InputError):
            yield where, text
            continue
        if not text.strip():
            continue
        try:
            value = guarded.parse_json(text.rstrip(), source, first_line=line, remedy=remedy)
            row = _object(value, where, remedy)
        except InputError as error:
            row = error
        yield where, row


def _json_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[RowOrError]:
    remedy = "write a list of objects, or name the file .jsonl if it has one object a line"
    content = guarded.read_whole(file, source)
    if not content.strip():
        return
    if _are_json_lines(content):
        yield from _json_line_rows(guarded.try_lines(io.BytesIO(content), source), source)
        return
    rows = guarded.parse_json(guarded.decode(content, source), source, remedy=remedy)
    if not isinstance(rows, list):
        raise InputError(f"{source}: holds {excerpt(rows)}, not a list; {remedy}")
    for index, row in enumerate(rows, 1):
        where = f"{source}, item {index}"
        yield where, _object(row, where, remedy)


def _are_json_lines(content: bytes) -> bool:
    """Whether a `.json` file has one object per line, like OpenAI's comparisons of summaries."""
    filled = (line for line in io.BytesIO(content) if line.strip())
    for num, line in enumerate(filled):
        try:
            is_object = isinstance(json.loads(line.decode()), dict)
        except UnicodeDecodeError:
            continue
        except (ValueError, RecursionError):
            return False
        return is_object and (num > 0 or next(filled, None) is not None)
    return False


def _csv_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[RowOrError]:
    return tables.separated_rows(file, source, required, usual=",")


def _tsv_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[RowOrError]:
    return tables.separated_rows(file, source, required, usual="\t")


READERS: dict[str, Callable[[io.BufferedIOBase, str, str | None], Iterator[RowOrError]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
}


def _object(value: Any, where: str, remedy: str) -> dict[str, Any] | InputError:
    if isinstance(value, dict):
        return value
    return InputError(f"{where}: {excerpt(value)} is not an object; {remedy}")
