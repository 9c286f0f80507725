"""The host loop of every trainer: update, log, checkpoint, until done or told to stop."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import Checkpoints, MetricsWriter, RunFolder
from jaxrl_lm.training.run import Interrupted, TrainingDivergedError, _StopSignals
from jaxrl_lm.types import PyTree

Update = Callable[[PyTree, int], tuple[PyTree, dict[str, float]]]
"""`update(state, num_done) -> (state, metrics)`: one update, its metrics as Python numbers."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """When the loop saves and what it shows.

    Attributes:
        num_updates: updates of the whole run.
        save_every: updates between checkpoints; the last one is always saved.
        keep_checkpoints: how many stay.
        shown: metrics beside the progress bar.
        wandb_project: Weights & Biases project, if any.
    """

    num_updates: int
    save_every: int
    keep_checkpoints: int
    shown: tuple[str, ...]
    wandb_project: str | None = None


def run_updates(
    folder: RunFolder,
    state: PyTree,
    update: Update,
    config: LoopConfig,
    *,
    fingerprints: dict[str, int],
    resume: bool,
) -> PyTree:
    """Run the updates that are still to do.

    Args:
        folder: the run.
        state: the initial state; when resuming, the template that the checkpoint is restored into.
        update: makes one update from the state and the number of updates done. Everything random in it must be a
            function of these two, so that a resumed run repeats the same numbers.
        config: when to save and what to show.
        fingerprints: of what the run reads beside its configuration, by name (the prompts, say); resuming refuses
            others.
        resume: start from the newest checkpoint.

    Returns:
        the state after the last update.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite; the message names the last good checkpoint.
        InputError: there is nothing to resume, or something else; or the update raised it (the state before that
            update is saved).
    """
    with Checkpoints(folder.checkpoints_folder, keep=config.keep_checkpoints) as checkpoints:
        num_done = 0
        if resume:
            num_done, state, saved = checkpoints.restore(state)
            _check_resumable(num_done, saved, config, fingerprints)
        else:
            checkpoints.save(0, state, fingerprints)
        with (
            MetricsWriter(folder, start_step=num_done + 1, wandb_project=config.wandb_project) as writer,
            _StopSignals() as signals,
            _Display(config, num_done) as display,
        ):
            while num_done < config.num_updates:
                try:
                    state, metrics = update(state, num_done)
                except InputError:
                    _save(checkpoints, num_done, state, fingerprints)
                    raise
                num_done += 1
                _check_finite(metrics, num_done, folder, checkpoints)
                writer.write(num_done, metrics)
                display.advance(num_done, metrics)
                if num_done == config.num_updates or signals.received or num_done % config.save_every == 0:
                    _save(checkpoints, num_done, state, fingerprints)
                if signals.received:
                    raise Interrupted(
                        f"stopped after update {num_done} of {config.num_updates}, which is saved; "
                        f"the same command with --resume goes on",
                        signals.received,
                    )
    return state


def _check_resumable(num_done: int, saved: dict[str, int], config: LoopConfig, fingerprints: dict[str, int]) -> None:
    if num_done > config.num_updates:
        raise InputError(
            f"num_updates={config.num_updates}: the run has made {num_done} already; give at least as many"
        )
    changed = [name for name, value in fingerprints.items() if saved.get(name) != value]
    if changed:
        raise InputError(
            f"resume: {', '.join(changed)} changed since the run was started; "
            "restore what it read, or start another run"
        )


def _save(checkpoints: Checkpoints, num_done: int, state: PyTree, fingerprints: dict[str, int]) -> None:
    if num_done > (checkpoints.latest_step() or 0):
        checkpoints.save(num_done, state, fingerprints)


def _check_finite(metrics: dict[str, float], num_done: int, folder: RunFolder, checkpoints: Checkpoints) -> None:
    bad = [f"{name}={value}" for name, value in metrics.items() if _is_loss(name) and not math.isfinite(value)]
    if not bad:
        return
    good = folder.checkpoints_folder / str(checkpoints.latest_step())
    raise TrainingDivergedError(
        f"update {num_done}: {', '.join(bad)}; the last good checkpoint is {good}. "
        "Lower the learning rate, or look at the rewards"
    )


def _is_loss(name: str) -> bool:
    return name.startswith(("loss/", "reward/", "kl/"))


class _Display:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, config: LoopConfig, num_done: int) -> None:
        self._config = config
        self._is_terminal = sys.stderr.isatty()
        columns: list[Any] = [
            TextColumn("updates"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        ]
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not self._is_terminal)
        self._task = self._progress.add_task("updates", total=config.num_updates, completed=num_done, rate="", shown="")

    def __enter__(self) -> "_Display":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def advance(self, num_done: int, metrics: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in self._config.shown if name in metrics)
        speed = self._progress.tasks[0].speed
        rate = f"{speed:.2f}/s" if speed else ""
        self._progress.update(self._task, completed=num_done, rate=rate, shown=shown)
        every = max(1, self._config.num_updates // 20)
        if not self._is_terminal and (num_done % every == 0 or num_done == self._config.num_updates):
            print(f"update {num_done}/{self._config.num_updates}  {shown}", file=sys.stderr, flush=True)
