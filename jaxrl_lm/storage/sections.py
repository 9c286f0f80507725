"""Sections that a trainer adds to its run's report: a table, a picture, or both."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage.run_folder import RunFolder, write_atomically


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A text whose pieces are coloured by a number each: blue below 0, orange above.

    Attributes:
        label: what the numbers are.
        pieces: the text in parts.
        values: a number for each part.
    """

    label: str
    pieces: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report, as plain text.

    Attributes:
        title: its heading.
        note: a sentence or two below it.
        heads: of the table's columns.
        rows: of the table; each as long as `heads`.
        is_prose: whether the cells are texts, which may be long, rather than numbers.
        picture: a PNG, its path from the run folder, or None.
        strips: coloured texts.
    """

    title: str
    note: str = ""
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    is_prose: bool = False
    picture: str | None = None
    strips: tuple[Strip, ...] = ()


def write_sections(folder: RunFolder, sections: Iterable[Section]) -> None:
    """Keep the sections in the run folder, where every report made of it finds them."""
    content = json.dumps([asdict(section) for section in sections], indent=2)
    write_atomically(_file(folder), content + "\n")


def read_sections(folder: RunFolder) -> list[Section]:
    """The sections of a run; none if none were written.

    Raises:
        InputError: the file is damaged, or names a picture that is not there or lies outside the folder.
    """
    path = _file(folder)
    if not path.exists():
        return []
    remedy = "mend or delete the file"
    entries = guarded.read_json(path, remedy=remedy)
    with guarded.foreign_errors(f"{str(path)!r} holds no sections of a report", remedy):
        sections = [_section(**entry) for entry in entries]
        pictures = [section.picture for section in sections if section.picture is not None]
        absent = [picture for picture in pictures if not _is_inside(folder.path / picture, folder.path)]
    if absent:
        raise InputError(f"{str(path)!r}: there is no picture {absent[0]!r} in the run folder: {remedy}")
    return sections


def _is_inside(picture: Path, folder: Path) -> bool:
    return picture.resolve().is_relative_to(folder.resolve()) and picture.is_file()


def _section(
    *, title: str, note: str, heads: list[str], rows: list[list[str]], is_prose: bool, picture: str | None, strips: Any
) -> Section:
    """The section of a JSON object that `write_sections` wrote; what is of another kind is a ValueError."""
    if any(len(row) != len(heads) for row in rows):
        raise ValueError(f"a row is not as long as the {len(heads)} heads")
    return Section(
        title=_text(title),
        note=_text(note),
        heads=tuple(map(_text, heads)),
        rows=tuple(tuple(map(_text, row)) for row in rows),
        is_prose=bool(is_prose),
        picture=None if picture is None else _text(picture),
        strips=tuple(_strip(**strip) for strip in strips),
    )


def _strip(*, label: str, pieces: list[str], values: list[float]) -> Strip:
    if len(pieces) != len(values):
        raise ValueError(f"{len(pieces)} pieces have {len(values)} values")
    return Strip(label=_text(label), pieces=tuple(map(_text, pieces)), values=tuple(map(float, values)))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.60} is not text")
    value.encode()  # half of a surrogate pair cannot be written into the report
    return value


def _file(folder: RunFolder) -> Path:
    return folder.path / "sections.json"
