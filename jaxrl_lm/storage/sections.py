"""Sections that a trainer adds to its report: a table, a picture, or both."""

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
    """A text with pieces coloured by value: blue below 0, orange above.

    Attributes:
        label: meaning of the values.
        pieces: the text in pieces.
        values: one value per piece.
    """

    label: str
    pieces: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report, in plain text.

    Attributes:
        title: the heading.
        note: a sentence or two below the heading.
        heads: column headings of the table.
        rows: rows of the table, each as long as `heads`.
        is_prose: whether cells are (possibly long) texts rather than numbers.
        picture: path of a PNG relative to the run folder, or None.
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
    """Store the sections in the run folder for its report."""
    content = json.dumps([asdict(section) for section in sections], indent=2)
    write_atomically(_file(folder), content + "\n")


def read_sections(folder: RunFolder) -> list[Section]:
    """The sections of a run; empty if none were written.

    Raises:
        InputError: the file is damaged, or a picture is missing or outside the folder.
    """
    path = _file(folder)
    if not path.exists():
        return []
    remedy = "correct or delete the file"
    entries = guarded.read_json(path, remedy=remedy)
    with guarded.foreign_errors(f"{str(path)!r} does not contain report sections", remedy):
        sections = [_section(**entry) for entry in entries]
        pictures = [section.picture for section in sections if section.picture is not None]
        absent = [picture for picture in pictures if not _is_inside(folder.path / picture, folder.path)]
    if absent:
        raise InputError(f"{str(path)!r}: picture {absent[0]!r} is not in the run folder: {remedy}")
    return sections


def _is_inside(picture: Path, folder: Path) -> bool:
    return picture.resolve().is_relative_to(folder.resolve()) and picture.is_file()


def _section(
    *, title: str, note: str, heads: list[str], rows: list[list[str]], is_prose: bool, picture: str | None, strips: Any
) -> Section:
    """Parse a section written by `write_sections`; wrong types raise ValueError."""
    if any(len(row) != len(heads) for row in rows):
        raise ValueError(f"a row does not have {len(heads)} cells")
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
    value.encode()  # lone surrogates cannot be written to the report
    return value


def _file(folder: RunFolder) -> Path:
    return folder.path / "sections.json"
