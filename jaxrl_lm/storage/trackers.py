"""Metrics of a run sent to TensorBoard and to Weights & Biases."""

import importlib
import math
import secrets
from typing import Any

from tensorboardX import SummaryWriter

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage.run_folder import RunFolder, write_atomically


class TensorBoardWriter:
    """Writes the metrics of every update as TensorBoard events; a context manager."""

    def __init__(self, folder: RunFolder, *, start_step: int) -> None:
        """Open the event file.

        Args:
            folder: the run folder.
            start_step: first step to be written; TensorBoard drops those from there on, left by an interrupted run.
        """
        self._writer = SummaryWriter(str(folder.tensorboard_folder), purge_step=start_step)

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the finite metrics of one step; the others are gaps."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Flush and close."""
        try:
            self._writer.close()
        except OSError:  # on a full disk; tensorboardX would try again, and print a traceback, when the process ends
            events: Any = self._writer.file_writer
            events.event_writer._worker.stop()
            events.event_writer._closed = True
            raise


class WandbWriter:
    """Logs the metrics of every update to Weights & Biases; a context manager."""

    def __init__(self, folder: RunFolder, *, project: str) -> None:
        """Start the run, or continue it under its id, which is in the run folder.

        Args:
            folder: the run folder.
            project: the project.

        Raises:
            InputError: wandb is not installed, or does not start the run.
        """
        wandb = _import_wandb(project)
        id_file = folder.path / "wandb_run_id"
        if not id_file.exists():
            write_atomically(id_file, secrets.token_hex(8))
        try:
            self._run = wandb.init(
                project=project,
                id=id_file.read_text(encoding="utf-8"),
                name=folder.path.name,
                dir=str(folder.path),
                config=folder.read_config(),
                resume="allow",
            )
        except Exception as error:  # no key, no network, no such project: each has its own class
            raise InputError(
                f"wandb_project={project!r}: wandb does not start a run ({type(error).__name__}: {error}); run "
                "`wandb login` and check the network, or leave --wandb-project out"
            ) from error

    def __enter__(self) -> "WandbWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._run.finish()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of one step."""
        self._run.log(dict(metrics), step=step)


def check_wandb(project: str) -> None:
    """Refuse a Weights & Biases project if wandb is not installed.

    Raises:
        InputError: wandb is not installed.
    """
    _import_wandb(project)


def _import_wandb(project: str) -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise InputError(
            f"wandb_project is {project!r}, but wandb is not installed: pip install 'jaxrl-lm[wandb]', "
            "or omit the project"
        ) from None
