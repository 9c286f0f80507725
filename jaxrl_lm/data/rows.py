"""Rows of a data set, one at a time, from any file format or the hub; each knows where it stands."""

import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxrl_lm.errors import InputError

HUB_PREFIX = "hub:"
MAX_CSV_CELL_CHARACTERS = 2**24
DATA_EXTRA = "install it with: pip install 'jaxrl-lm[data]'"

RowOrError = tuple[str, dict[str, Any] | InputError]
"""Where the row stands, for errors, and its columns, or what is wrong with it while others can still be read."""


def try_rows(source: str, *, line_column: str | None, required: str | None = None) -> Iterator[RowOrError]:
    """Read rows lazily, past those that are broken; the source and its form must still be right.

    Args:
        source: a file, or `hub:NAME[[:CONFIG]:SPLIT]`.
        line_column: the column that a line of plain text becomes; None refuses plain text.
        required: a column that the header of a table must name; rows of files without one are not looked at.

    Yields:
        Where the row stands, and its columns by name or what is wrong with it.

    Raises:
        InputError: the source is not there or is not of its form.
    """
    if source.startswith(HUB_PREFIX):
        return _hub_rows(source)
    return _file_rows(source, required, line_column)


def excerpt(value: Any) -> str:
    """Show a value in an error, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def check_column(column: str | None, present: list[str], where: str) -> None:
    """Refuse what lacks a column of the prompt.

    Raises:
        InputError: the column is not among those present.
    """
    if column is None or column in present:
        return
    near = difflib.get_close_matches(column, present, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    columns = ", ".join(repr(name) for name in present) or "none"
    raise InputError(
        f"{where}: there is no column {column!r}{guess} The columns are: {columns}. "
        "Set `column` to the one that holds the prompt"
    )


def _hub_rows(source: str) -> Iterator[RowOrError]:
    name, config, split = _hub_parts(source)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f"{source}: the hub's data sets need the package datasets; {DATA_EXTRA}") from error
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
            raise InputError(f"{source!r} is not there; check the path, or write hub:NAME for one of the hub")
        with gzip.open(path) if is_gzipped else path.open("rb") as file:
            if suffix in READERS:
                yield from READERS[suffix](file, source, required)
            else:
                yield from _text_rows(file, source, line_column)
    except (OSError, EOFError, zlib.error) as error:
        what = "is not a whole gzip file or cannot be read" if is_gzipped else "cannot be read"
        raise InputError(f"{source}: {what} ({error}); check the file, or make it anew") from error


def _text_rows(file: io.BufferedIOBase, source: str, column: str | None) -> Iterator[RowOrError]:
    if column is None:
        raise InputError(f"{source}: plain text has no columns; give a file that ends in one of {', '.join(READERS)}")
    for line, text in _try_lines(file, source):
        if isinstance(text, InputError):
            yield f"{source}, line {line}", text
        elif text.strip():
            yield f"{source}, line {line}", {column: text.rstrip("\r\n")}


def _jsonl_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[RowOrError]:
    return _json_line_rows(_try_lines(file, source), source)


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
            row = _object(_parse_json(text.rstrip(), source, line, remedy), where, remedy)
        except InputError as error:
            row = error
        yield where, row


def _json_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[RowOrError]:
    remedy = "write a list of objects, or name the file .jsonl if it has one object a line"
    lines = list(_try_lines(file, source))
    filled = [text for _, text in lines if isinstance(text, InputError) or text.strip()]
    if not filled:
        return
    if _are_json_lines(filled):
        yield from _json_line_rows(lines, source)
        return
    rows = _parse_json("".join(_decoded(text) for _, text in lines), source, 1, remedy)
    if not isinstance(rows, list):
        raise InputError(f"{source}: holds {excerpt(rows)}, not a list; {remedy}")
    for index, row in enumerate(rows, 1):
        where = f"{source}, item {index}"
        yield where, _object(row, where, remedy)


def _are_json_lines(filled: list[str | InputError]) -> bool:
    """Whether a `.json` file holds one object a line after all, as OpenAI's comparisons of summaries do."""
    first = next((text for text in filled if isinstance(text, str)), "")
    if len(filled) < 2 or not first.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _csv_rows(
    file: io.BufferedIOBase, source: str, required: str | None, *, delimiter: str = ","
) -> Iterator[RowOrError]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CSV_CELL_CHARACTERS))
    # Strict, because otherwise a quote that is never closed swallows the rest of the file without a word.
    reader = csv.reader((text for _, text in _lines(file, source)), delimiter=delimiter, strict=True)
    header: list[str] = []
    where = source
    try:
        while True:
            where = f"{source}, line {reader.line_num + 1}"
            cells = next(reader, None)
            if cells is None:
                return
            if cells and header:
                yield where, _csv_row(header, cells, where)
            elif cells:
                header = _csv_header(cells, required, where)
    except csv.Error as error:
        raise InputError(
            f"{where}: this row is not valid {delimiter!r}-separated text ({error}); close "
            'every quoted cell and write a quote inside one as ""'
        ) from error


def _tsv_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[RowOrError]:
    return _csv_rows(file, source, required, delimiter="\t")


def _csv_header(cells: list[str], required: str | None, where: str) -> list[str]:
    check_column(required, cells, where)
    twice = [cell for cell in cells if cells.count(cell) > 1]
    if twice:
        raise InputError(f"{where}: the column {twice[0]!r} stands there twice; rename one")
    return cells


def _csv_row(header: list[str], cells: list[str], where: str) -> dict[str, Any] | InputError:
    if len(cells) != len(header):
        return InputError(
            f"{where}: {len(cells)} cells, but the header has {len(header)}; "
            "put quotes around a cell that holds the separator or a line's end"
        )
    return dict(zip(header, cells, strict=True))


def _parquet_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[RowOrError]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{source}: a parquet file needs the package pyarrow; {DATA_EXTRA}") from error
    content = file.read()
    if not content:
        return
    index = 0
    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(content))
        check_column(required, table.schema_arrow.names, source)
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                index += 1
                yield f"{source}, row {index}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not a whole parquet file ({error}); check the file, or make it anew") from error


READERS: dict[str, Callable[[io.BufferedIOBase, str, str | None], Iterator[RowOrError]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
}


def _lines(file: io.BufferedIOBase, source: str) -> Iterator[tuple[int, str]]:
    """Lines with their ends, numbered from 1, of a file whose rows cannot be told apart past a broken line."""
    return ((line, _decoded(text)) for line, text in _try_lines(file, source))


def _try_lines(file: io.BufferedIOBase, source: str) -> Iterator[tuple[int, str | InputError]]:
    """Lines with their ends, numbered from 1, or what is wrong with them; only a line feed ends a line, as in JSON and
    csv."""
    for line, raw in enumerate(file, 1):
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            yield line, InputError(f"{source}, line {line}: not UTF-8 ({error.reason}); save it as UTF-8")
            continue
        yield line, text.removeprefix("\ufeff") if line == 1 else text


def _decoded(text: str | InputError) -> str:
    if isinstance(text, InputError):
        raise text
    return text


def _parse_json(text: str, source: str, first_line: int, remedy: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{source}, line {line}: not valid JSON ({error.msg}, character {error.colno}); {remedy}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting too deep
        raise InputError(f"{source}, line {first_line}: unreadable JSON ({error}); {remedy}") from error


def _object(value: Any, where: str, remedy: str) -> dict[str, Any] | InputError:
    if isinstance(value, dict):
        return value
    return InputError(f"{where}: {excerpt(value)} is not an object; {remedy}")
