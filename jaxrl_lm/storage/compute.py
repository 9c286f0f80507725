"""What a run cost: how its energy and operations were found, and the report's section with their sums."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage.metrics import Curve
from jaxrl_lm.storage.run_folder import RunFolder, write_atomically
from jaxrl_lm.storage.sections import Section

_REMEDY = "correct or delete the file"


def write_compute_note(folder: RunFolder, subject: str, text: str) -> None:
    """Store how the numbers of one subject were found, for the report.

    Args:
        folder: of the run.
        subject: "energy" or "flops".
        text: a sentence.
    """
    notes = _read_notes(folder) | {subject: text}
    write_atomically(_file(folder), json.dumps(notes, indent=2) + "\n")


def compute_section(folder: RunFolder, curves: Mapping[str, Curve]) -> Section | None:
    """The report's section; None if nothing was counted.

    Raises:
        InputError: the file with the notes is damaged.
    """
    notes = _read_notes(folder)
    found = [
        ("energy", "energy/total", "energy", _last, "J"),
        ("energy", "energy/estimated_total", "energy, estimated", _last, "J"),
        ("flops", "flops/total", "operations of products", _last, "FLOP"),
        ("flops", "flops/per_second", "their rate, median", _median, "FLOP/s"),
        ("flops", "flops/utilization", "share of the devices' peak, median", _median, ""),
    ]
    rows, shown = [], set[str]()
    for subject, name, title, summary, unit in found:
        if name in curves:
            how = "" if subject in shown else notes.get(subject, "")
            shown.add(subject)
            rows.append((title, f"{_short(summary(curves[name].values))}{unit}".strip(), how))
    rows += [(subject, "-", text) for subject, text in notes.items() if subject not in shown]
    if not rows:
        return None
    return Section(title="Energy and operations", heads=("what", "value", "how"), rows=tuple(rows), is_prose=True)


def _last(values: Any) -> float:
    return float(values[-1])


def _median(values: Any) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def _short(value: float) -> str:
    """Three digits, and a prefix of 1,000 as in 1.2 k."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "


def _read_notes(folder: RunFolder) -> dict[str, str]:
    path = _file(folder)
    if not path.exists():
        return {}
    notes = guarded.read_json(path, remedy=_REMEDY)
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise InputError(f"{str(path)!r} does not contain notes by subject; {_REMEDY}")
    return notes


def _file(folder: RunFolder) -> Path:
    return folder.path / "compute.json"
