"""A whole measurement: its JSON form, its tables, and its comparison with an earlier one."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxrl_lm import guarded, storage
from jaxrl_lm.benchmarking.config import BenchConfig
from jaxrl_lm.benchmarking.measuring import Ceilings, Figure
from jaxrl_lm.errors import InputError

_REMEDY = "correct or delete the file"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured.

    Attributes:
        model: name of the language model.
        sizes: settings that measurements must have in common to be compared.
        environment: machine, versions, commit.
        ceilings: what one device can do.
        figures: by name.
        notes: what is to be said of them.
    """

    model: str
    sizes: Mapping[str, Any]
    environment: Mapping[str, Any]
    ceilings: Ceilings
    figures: Mapping[str, Figure]
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomically(path, json.dumps(asdict(self), indent=2) + "\n")


def read_measurement(path: Path) -> Measurement:
    """Read what `Measurement.write` wrote.

    Raises:
        InputError: it is no such file.
    """
    content = guarded.read_json(path, remedy=_REMEDY)
    with guarded.foreign_errors(f"{str(path)!r} does not contain a measurement", _REMEDY):
        ceilings = Ceilings(**content["ceilings"])
        figures = {name: Figure(**each) for name, each in content["figures"].items()}
        return Measurement(**{**content, "ceilings": ceilings, "figures": figures, "notes": tuple(content["notes"])})


def baseline_file(folder: Path, device: str, model: str) -> Path:
    """The file of earlier measurements of a device and a model, by their names."""
    parts = (re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in (device, Path(model).name))
    return folder / f"{'--'.join(parts)}.json"


def read_baseline(file: Path, config: BenchConfig) -> Measurement | None:
    """The earlier measurement, if there is one.

    Raises:
        InputError: the file is damaged, or has other sizes than these settings.
    """
    if not file.exists():
        return None
    found = read_measurement(file)
    sizes = config.sizes()
    other = [f"{name}={value}" for name, value in found.sizes.items() if sizes.get(name) != value]
    if other:
        raise InputError(f"{str(file)!r} was measured with {', '.join(other)}; give the same, or --save-baseline")
    return found


def falls(measurement: Measurement, baseline: Measurement, max_fall: float) -> list[str]:
    """A sentence for each figure that is further below the earlier one than allowed, as a fraction."""
    found = []
    for name, figure in measurement.figures.items():
        before = baseline.figures.get(name)
        if before is not None and figure.value < (1 - max_fall) * before.value:
            fall = 1 - figure.value / before.value
            found.append(f"{name} fell by {fall:.0%}, from {before.value:,.4g} to {figure.value:,.4g} {figure.unit}")
    return found


def merged(measurement: Measurement, earlier: Measurement) -> Measurement:
    """A measurement with the earlier one's figures of other suites, where both have the same sizes."""
    if dict(earlier.sizes) != dict(measurement.sizes):
        return measurement
    return replace(measurement, figures={**earlier.figures, **measurement.figures})


def tables(measurement: Measurement, baseline: Measurement | None) -> Iterable[Table]:
    """Tables for the terminal."""
    ceilings = measurement.ceilings
    rows = {f"products, {dtype}": f"{rate / 1e12:,.3g} TFLOP/s" for dtype, rate in ceilings.products.items()}
    rows["memory"] = f"{ceilings.bandwidth / 1e9:,.4g} GB/s"
    if ceilings.peak is not None:
        rows["published peak, bfloat16"] = f"{ceilings.peak / 1e12:,.4g} TFLOP/s"
    top = Table("what one device can do", "measured", title=str(measurement.environment["device"]))
    for row in rows.items():
        top.add_row(*row)
    yield top
    heads = ["figure", "rate", "median", "first call", "of products", "of memory", "MFU"]
    table = Table(*heads, *(["earlier"] if baseline else []), "more", title=Path(measurement.model).name)
    for name, figure in measurement.figures.items():
        shares = [_percent(figure.shares.get(each)) for each in ("products", "bandwidth", "peak")]
        before = None if baseline is None else baseline.figures.get(name)
        change = [] if baseline is None else ["" if before is None else f"{figure.value / before.value - 1:+.0%}"]
        facts = ", ".join(f"{fact} {value:.3g}" for fact, value in figure.facts.items())
        rate = f"{figure.value:,.4g} {figure.unit}"
        table.add_row(
            *(name, rate, f"{figure.seconds['median']:.3g} s", f"{figure.first_call:.3g} s"), *shares, *change, facts
        )
    yield table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
