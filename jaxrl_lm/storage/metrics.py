"""Metrics of a run: written to JSON lines, TensorBoard and Weights & Biases, and read back as curves."""

import importlib
import math
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tensorboardX import SummaryWriter

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage.run_folder import (
    RunFolder,
    append_jsonl,
    check_step,
    finite_number,
    read_jsonl,
    truncate_jsonl,
    write_atomically,
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
    """Writes the metrics of every update to all outputs; a context manager."""

    def __init__(self, folder: RunFolder, *, start_step: int, wandb_project: str | None = None) -> None:
        """Open the files and drop records from `start_step` on, left by an interrupted run.

        Args:
            folder: the run folder.
            start_step: first step to be written; 0 unless the run resumes.
            wandb_project: Weights & Biases project to also write to, or None.

        Raises:
            InputError: if a project is given and wandb is not installed, or an existing file is not readable.
        """
        wandb = None if wandb_project is None else _import_wandb(wandb_project)
        truncate_jsonl(folder.metrics_file, start_step)
        if start_step > 0:
            truncate_jsonl(folder.samples_file, start_step)
            truncate_jsonl(folder.seeds_file, start_step)
        self._folder = folder
        self._tensorboard = SummaryWriter(str(folder.tensorboard_folder), purge_step=start_step)
        self._wandb_run = None if wandb is None else _start_wandb(wandb, folder, wandb_project, start_step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step.

        Args:
            step: the update, higher than the last one written.
            metrics: values by name, `group/name`; values that are not finite become null in `metrics.jsonl` and a gap
                in TensorBoard.

        Raises:
            ValueError: if a metric is named `step`.
        """
        if "step" in metrics:
            raise ValueError("a metric is named 'step', which is reserved for the step itself: rename it")
        values = {name: float(value) for name, value in metrics.items()}
        append_jsonl(self._folder.metrics_file, [{"step": step, **values}])
        for name, value in values.items():
            if math.isfinite(value):
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb_run is not None:
            self._wandb_run.log(values, step=step)

    def close(self) -> None:
        """Flush and close."""
        try:
            self._tensorboard.close()
        except OSError:  # on a full disk; tensorboardX would try again, and print a traceback, when the process ends
            events: Any = self._tensorboard.file_writer
            events.event_writer._worker.stop()
            events.event_writer._closed = True
            raise
        if self._wandb_run is not None:
            self._wandb_run.finish()


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


def check_wandb(project: str | None) -> None:
    """Refuse a Weights & Biases project if wandb is not installed.

    Raises:
        InputError: a project is given and wandb is not installed.
    """
    if project is not None:
        _import_wandb(project)


def _import_wandb(project: str) -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise InputError(
            f"wandb_project is {project!r}, but wandb is not installed: pip install 'jaxrl-lm[wandb]', "
            "or omit the project"
        ) from None


def _start_wandb(wandb: Any, folder: RunFolder, project: str | None, start_step: int) -> Any:
    id_file = folder.path / "wandb_run_id"
    if start_step == 0 or not id_file.exists():
        write_atomically(id_file, secrets.token_hex(8))
    return wandb.init(
        project=project,
        id=id_file.read_text(encoding="utf-8"),
        name=folder.path.name,
        dir=str(folder.path),
        config=folder.read_config(),
        resume="allow",
    )
