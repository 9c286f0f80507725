"""Damage to files, drawn by a seeded generator."""

import contextlib
import gzip
import json
import random
import sqlite3
import struct
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import yaml

DEEP = "[" * 900 + "]" * 900
_DEEP_MARK = "\ue000deep"
VALUES: tuple[Any, ...] = (
    None, True, False, [], {}, "", " ", "x" * 5000, "\0", "\ud83d", "1:30", "&a [*a]", -1, 0, 1, 0.5, 1e308, 2**31,
    2**63, 10**400, float("nan"), float("inf"), 100_000_000, [1], [None], [[1, "x"]], {"a": 1}, {"": [None]},
    _DEEP_MARK,
)  # fmt: skip
_SQL_VALUES = (None, 0, -1, 7, 1e308, float("inf"), "", "x", "7", "tie", "up", b"\xff", '["a", "b"]', "[1, 0]")
_SNIPPETS = (
    b"\0" * 64, b"9" * 401, b"9" * 5000, DEEP.encode(), b'{"a":' * 900, b"\n", b"\r", b'"', b"\\", b"\\ud83d", b",",
    b"&a {x: *a}", b"!!int x", b"<<: *a", b"1:30", b"{{", b"x" * 10**6,
)  # fmt: skip
_ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")


def mutate(content: bytes, name: str, rng: random.Random) -> bytes:
    """Damage a file.

    Args:
        content: of a good file.
        name: of the file; its suffix says what it holds.
        rng: draws the damage.

    Returns:
        The content of the damaged file; sometimes the same.
    """
    if name.endswith(".gz") and rng.random() < 0.8:
        return gzip.compress(mutate(gzip.decompress(content), name.removesuffix(".gz"), rng), mtime=0)
    structured = _STRUCTURED.get("." + name.rpartition(".")[2])
    if structured is not None and rng.random() < 0.6:
        return structured(content, rng)
    damage = rng.choice(_DAMAGES)
    return damage(content, rng)


def _place(content: bytes, rng: random.Random) -> int:
    return rng.randrange(len(content) + 1)


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(min(len(content), rng.choice((1, 1, 4, 64)))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted((_place(content, rng), _place(content, rng)))
    return content[:end] + content[start:end] * rng.choice((1, 2, 50)) + content[end:]


def _delete(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted((_place(content, rng), _place(content, rng)))
    return content[:start] + content[end:]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = _place(content, rng)
    inserted = rng.choice((*_SNIPPETS, rng.randbytes(rng.choice((1, 8, 300)))))
    return content[:place] + inserted + content[place:]


def _recode(content: bytes, rng: random.Random) -> bytes:
    return content.decode("utf-8", "replace").encode(rng.choice(_ENCODINGS), "replace")


def _line_ends(content: bytes, rng: random.Random) -> bytes:
    return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"")))


def _swap(content: bytes, rng: random.Random) -> bytes:
    place = _place(content, rng)
    return content[place:] + content[:place]


_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _truncate, _repeat, _delete, _insert, _insert, _recode, _line_ends, _swap),
    lambda content, rng: b"",
)


def _json(content: bytes, rng: random.Random) -> bytes:
    return _changed(json.loads(content), rng)


def _json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place] = _json(lines[place], rng) + b"\n"
    return b"".join(lines)


def _yaml(content: bytes, rng: random.Random) -> bytes:
    return _changed(yaml.safe_load(content), rng)  # JSON is YAML


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    header = _changed(json.loads(content[8 : 8 + size]), rng)
    if rng.random() < 0.3:
        header = header.replace(b'"F32"', rng.choice((b'"F4"', b'"F8_E4M3"', b'"C64"', b'"BOOL"', b'"X"')))
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def _sqlite(content: bytes, rng: random.Random) -> bytes:
    """Another value in a column of a row: SQLite finds no fault with it."""
    modes, unlogged = content[18:20], b"\1\1"  # a database in memory has no write-ahead log
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(content[:18] + unlogged + content[20:])
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        filled = [name for name in tables if connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]]
        table = rng.choice(filled)
        column = rng.choice([row[1] for row in connection.execute(f"PRAGMA table_info({table})")])
        (row,) = rng.choice(connection.execute(f"SELECT rowid FROM {table}").fetchall())
        value = rng.choice((*_SQL_VALUES, *(json.dumps(value).replace(f'"{_DEEP_MARK}"', DEEP) for value in VALUES)))
        with contextlib.suppress(sqlite3.IntegrityError):  # a row's number is a whole number
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE rowid = ?", (value, row))
        connection.commit()
        changed = connection.serialize()
    return changed[:18] + modes + changed[20:]


_STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".sqlite": _sqlite,
}


def _changed(tree: Any, rng: random.Random) -> bytes:
    """JSON of a tree of which a node, up to three, is another value, gone, twice there, or called otherwise."""
    for _ in range(rng.choice((1, 1, 1, 3))):
        tree = _change(tree, rng)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    return text.replace(json.dumps(_DEEP_MARK), DEEP).replace(f'"{_DEEP_MARK}"', DEEP).encode("utf-8", "surrogatepass")


def _change(tree: Any, rng: random.Random) -> Any:
    holders = _holders(tree)
    if not holders or rng.random() < 0.05:
        return deepcopy(rng.choice(VALUES))  # later changes must not reach the table
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    how = rng.random()
    if how < 0.7:
        holder[key] = deepcopy(rng.choice(VALUES))
    elif how < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(("", "x", key.upper(), f" {key} ", "__proto__", "a.b", "0"))] = holder.pop(key)
    else:
        holder.append(holder[key])
    return tree


def _holders(tree: Any) -> list[Any]:
    """All lists and objects of a tree that hold something."""
    found, left = [], [tree]
    while left:
        value = left.pop()
        if isinstance(value, dict | list) and value:
            found.append(value)
            left += value.values() if isinstance(value, dict) else value
    return found
