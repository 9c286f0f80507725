"""Sections that a trainer adds to its run's report: a table, a picture, or both."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

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
        tables = [
            {
                "heads": tuple(entry["heads"]),
                "rows": tuple(map(tuple, entry["rows"])),
                "strips": tuple(_strip(**strip) for strip in entry["strips"]),
            }
            for entry in entries
        ]
        sections = [Section(**(entry | table)) for entry, table in zip(entries, tables, strict=True)]
    for section in sections:
        inside = section.picture is None or (folder.path / section.picture).resolve().is_relative_to(
            folder.path.resolve()
        )
        if not inside or (section.picture and not (folder.path / section.picture).is_file()):
            raise InputError(f"{str(path)!r}: there is no picture {section.picture!r} in the run folder: {remedy}")
    return sections


def _strip(label: str, pieces: list[str], values: list[float]) -> Strip:
    return Strip(label=label, pieces=tuple(pieces), values=tuple(map(float, values)))


def _file(folder: RunFolder) -> Path:
    return folder.path / "sections.json"
