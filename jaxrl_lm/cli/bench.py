"""`jaxrl-lm bench`: speed on this machine's devices."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxrl_lm.benchmarking.config import BenchConfig
from jaxrl_lm.benchmarking.environments import measure_environments
from jaxrl_lm.benchmarking.language import measure_language
from jaxrl_lm.benchmarking.measuring import Bench, Figure, measure_ceilings
from jaxrl_lm.benchmarking.results import (
    Measurement,
    baseline_file,
    falls,
    merged,
    read_baseline,
    read_measurement,
    tables,
)
from jaxrl_lm.benchmarking.scaling import measure_scaling
from jaxrl_lm.benchmarking.timing import environment
from jaxrl_lm.cli.console import print_text
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.training.errors import RunFailedError
from jaxrl_lm.training.observers import tell


def run_bench(config: BenchConfig) -> None:
    """Measure, print, write, and compare with the earlier measurement.

    Raises:
        InputError: the model or the earlier measurement cannot be read.
        RunFailedError: a figure fell further than `max_fall`.
    """
    config, surroundings = config.sized(), environment()
    if {"lm", "scale"} & {*config.suite}:
        resolve_folder(config.model_name)
    file = baseline_file(config.baselines_folder, surroundings["device"], config.model_name)
    baseline = None if config.save_baseline else read_baseline(file, config)
    for measurement in measure(config, surroundings):
        measurement.write(Path(config.out))
    _print(measurement, baseline)
    print_text(f"written: {config.out}", soft_wrap=True)
    if config.save_baseline:
        kept = merged(measurement, read_measurement(file)) if file.exists() else measurement
        kept.write(file)
        print_text(f"kept for comparison: {file}", soft_wrap=True)
    elif baseline is None:
        print_text(f"no earlier measurement of this device and model ({file.name}); --save-baseline keeps this one")
    else:
        found = falls(measurement, baseline, config.max_fall)
        if found:
            raise RunFailedError("; ".join(found))


def measure(config: BenchConfig, surroundings: Mapping[str, Any]) -> Iterator[Measurement]:
    """The figures of the suites asked for, again after each suite with those before it.

    Args:
        config: the settings.
        surroundings: machine, versions, commit.
    """
    tell("measuring what one device can do ...")
    # Large enough that starting a program takes a small share of its time.
    size, num_values = (2048, 2**25) if jax.default_backend() == "cpu" else (8192, 2**28)
    size, num_values = (64, 2**12) if config.quick else (size, num_values)
    ceilings = measure_ceilings(size=size, num_values=num_values, repeats=config.repeats)
    profile = None if config.profile is None else Path(config.profile)
    bench = Bench(ceilings=ceilings, repeats=config.repeats, profile=profile)
    found = Measurement(
        model=Path(config.model_name).name,
        sizes=config.sizes(),
        environment=surroundings,
        ceilings=ceilings,
        figures={},
    )
    for suite in dict.fromkeys(config.suite):
        tell(f"suite {suite} ...")
        figures, notes = _SUITES[suite](config, bench)
        found = replace(found, figures={**found.figures, **figures}, notes=(*found.notes, *notes))
        yield found


_SUITES: dict[str, Callable[[BenchConfig, Bench], tuple[dict[str, Figure], list[str]]]] = {
    "env": lambda config, bench: (measure_environments(config, bench), []),
    "lm": lambda config, bench: (measure_language(config, bench), []),
    "scale": lambda config, _: measure_scaling(config),
}


def _print(measurement: Measurement, baseline: Measurement | None) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file has no width
    for table in tables(measurement, baseline):
        console.print(table)
    for note in measurement.notes:
        print_text(f"note: {note}")
