"""Rows of tables: text with separators, and parquet."""

import csv
import io
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from jaxrl_lm import guarded
from jaxrl_lm.data.columns import check_column, check_unique, tidy_names
from jaxrl_lm.data.dialects import PROMPT, gives_prompt
from jaxrl_lm.errors import InputError

DATA_EXTRA = "install it with: pip install 'jaxrl-lm[data]'"
_SEPARATORS = ",;\t|"
_EXCEL_SEPARATOR = re.compile(r"sep=(.)\r?\n")
_QUOTED = re.compile(r'"[^"]*"?')


def separated_rows(
    file: io.BufferedIOBase, source: str, required: str | None, *, usual: str
) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """Rows of a text table with column names in its first line.

    Args:
        file: of text in UTF-8.
        source: its name, for errors.
        required: a column that the header must name; None for any.
        usual: the separator by the file's name. Where the header does not hold it, it is the one of comma, semicolon,
            tab and bar that the header holds most often; Excel's first line `sep=;` names any.

    Yields:
        Where the row is, and its cells by name or what is wrong with it.

    Raises:
        InputError: the header lacks the column or has a name twice, or a line is not text in cells.
    """
    csv.field_size_limit(max(csv.field_size_limit(), guarded.MAX_CSV_CELL_CHARACTERS))
    lines, separator, num_skipped = _with_separator(_whole_lines(file, source), usual)
    # Strict, because otherwise a quote that is never closed swallows the rest of the file without a word.
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str | None] = []
    where = source
    try:
        while True:
            where = f"{source}, line {reader.line_num + 1 + num_skipped}"
            cells = next(reader, None)
            if cells is None:
                return
            if cells and header:
                yield where, _row(header, cells, where)
            elif cells:
                header = _header(cells, required, where)
    except csv.Error as error:
        raise InputError(
            f"{where}: this row is not valid {separator!r}-separated text ({error}); close "
            'every quoted cell and write a quote inside one as ""'
        ) from error


def parquet_rows(file: io.BufferedIOBase, source: str, required: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a parquet file, of at most `guarded.MAX_FILE_BYTES`; arguments as `separated_rows`.

    Raises:
        InputError: it is damaged, lacks the column, or holds values that Python has no type for.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{source}: a parquet file needs the package pyarrow; {DATA_EXTRA}") from error
    content = guarded.read_whole(file, source)
    if not content:
        return
    index = 0
    with guarded.foreign_errors(f"{source}: not a whole parquet file", "check the file, or create it again"):
        table = parquet.ParquetFile(pyarrow.BufferReader(content))
        _check_required(required, tidy_names(table.schema_arrow.names, required), source)
        for batch in table.iter_batches():
            for row in _plain_rows(batch, source):
                index += 1
                yield f"{source}, row {index}", row


def _plain_rows(batch: Any, source: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except Exception:
        # Such as a duration, or a date, that Python's types do not reach to.
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            with guarded.foreign_errors(
                f"{source}: the column {name!r}, of type {column.type}, cannot be read",
                "leave it out, or write it as text or numbers",
            ):
                column.to_pylist()
        raise


def _whole_lines(file: io.BufferedIOBase, source: str) -> Iterator[str]:
    """Lines of a file in which rows after a broken line cannot be read."""
    for _, text in guarded.try_lines(file, source):
        if isinstance(text, InputError):
            raise text
        yield text


def _with_separator(lines: Iterator[str], usual: str) -> tuple[Iterator[str], str, int]:
    """The lines of a table, the separator of its cells, and the number of skipped lines before it."""
    blank: list[str] = []
    for line in lines:
        if not line.strip("\r\n"):
            blank.append(line)
            continue
        named = _EXCEL_SEPARATOR.fullmatch(line)
        if named:
            return lines, named[1], len(blank) + 1
        bare = _QUOTED.sub("", line)
        most = max(_SEPARATORS, key=bare.count)
        separator = usual if usual in bare or most not in bare else most
        return chain(blank, [line], lines), separator, 0
    return lines, usual, 0


def _header(cells: list[str], required: str | None, where: str) -> list[str | None]:
    names = tidy_names(cells, required)
    _check_required(required, names, where)
    check_unique([name for name in names if name is not None], where)
    return names


def _check_required(required: str | None, names: list[str | None], where: str) -> None:
    present = [name for name in names if name is not None]
    if not (required == PROMPT and gives_prompt(present)):
        check_column(required, present, where)


def _row(header: list[str | None], cells: list[str], where: str) -> dict[str, Any] | InputError:
    if len(cells) != len(header):
        return InputError(
            f"{where}: {len(cells)} cells, but the header has {len(header)}; "
            "put quotes around a cell that contains the separator or a newline"
        )
    return {name: cell for name, cell in zip(header, cells, strict=True) if name is not None}
