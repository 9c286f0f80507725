"""Metrics of a run: written to `metrics.jsonl`, and read back as curves."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrl_lm.storage.run_folder import (
    LARGEST,
    RunFolder,
    append_jsonl,
    check_step,
    finite_number,
    read_jsonl,
    truncate_jsonl,
)


class Curve(NamedTuple):
    """One metric over a run.

    Attributes:
        steps: updates at which it was logged, `[N]`.
        values: logged values, `[N]`; NaN where not finite.
    """

    steps: Int[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]


class MetricsWriter:
    """Writes the metrics of every update to `metrics.jsonl`; a context manager."""

    def __init__(self, folder: RunFolder, *, start_step: int) -> None:
        """Drop records from `start_step` on, left by an interrupted run.

        Args:
            folder: the run folder.
            start_step: first step to be written; 1 unless the run resumes.

        Raises:
            InputError: an existing file is not readable.
        """
        for file in (folder.metrics_file, folder.samples_file, folder.seeds_file):
            truncate_jsonl(file, start_step)
        self._file = folder.metrics_file

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of one step.

        Args:
            step: the update, higher than the last one written.
            metrics: values by name, `group/name`; values that are not finite, or beyond 1e300, become null.

        Raises:
            ValueError: a metric is named `step`.
        """
        if "step" in metrics:
            raise ValueError("a metric is named 'step', which is reserved for the step itself: rename it")
        values = {name: float(value) for name, value in metrics.items()}
        shown = {name: value if abs(value) <= LARGEST else None for name, value in values.items()}
        append_jsonl(self._file, [{"step": step, **shown}])


def read_metrics(folder: RunFolder) -> dict[str, Curve]:
    """Read `metrics.jsonl` as curves by name, in order of first appearance.

    Raises:
        InputError: if a line is not a JSON object, or a value is neither a number nor null.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for number, record in enumerate(read_jsonl(folder.metrics_file), start=1):
        step = check_step(folder.metrics_file, number, record)
        for name, value in record.items():
            if name != "step":
                points.setdefault(name, []).append((step, finite_number(folder.metrics_file, number, name, value)))
    return {
        name: Curve(np.array([s for s, _ in pairs], np.int64), np.array([v for _, v in pairs], np.float64))
        for name, pairs in points.items()
    }
