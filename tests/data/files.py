"""Files to read: writers of every format, which know nothing of the readers, and rows of conversations."""

import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from jaxrl_lm.errors import InputError

SYSTEM = {"role": "system", "content": "Be brief."}
SKY = {"role": "user", "content": "What colour is the sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}
MORE = {"role": "user", "content": "And the grass?"}


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_separated(rows, dialect):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), dialect=dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


WRITERS = {
    "jsonl": as_jsonl,
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "csv": lambda rows: as_separated(rows, "excel"),
    "tsv": lambda rows: as_separated(rows, "excel-tab"),
    "parquet": as_parquet,
}


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def one(reader, folder, row, **options):
    """What the reader makes of a single row."""
    return reader(write(folder, "row.jsonl", json.dumps(row)), **options)


def refused(reader, folder, row, *parts, **options):
    with pytest.raises(InputError) as caught:
        one(reader, folder, row, **options)
    for part in ("1 of 1 rows do not fit, more than 1%", "row.jsonl, line 1", *parts):
        assert part in str(caught.value)
