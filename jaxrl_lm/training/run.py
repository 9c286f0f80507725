"""One run of any trainer: start or resume, update until done or stopped, finish.

A trainer gives `train` its settings (a `RunConfig`) and a function that loads what it needs (a `Training`). The rest
is here: the run folder, checkpoints, signals, observers, and what may have changed between a run and its resumption.
"""

import dataclasses
import json
import logging
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import jax

from jaxrl_lm import storage
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import Checkpoints, RunFolder
from jaxrl_lm.training.errors import DiskFullError, Interrupted, TrainingDivergedError
from jaxrl_lm.training.observers import ObservedRun, check_observers, make_observers, tell
from jaxrl_lm.training.settings import RunConfig, StageConfig
from jaxrl_lm.types import PyTree

Update = Callable[[PyTree, int], tuple[PyTree, dict[str, float]]]
"""`update(state, num_done) -> (state, metrics)`: one update, its metrics as Python numbers. Everything random in it is
a function of these two, so that a resumed run repeats the same numbers."""

Samples = list[dict[str, Any]]
Config = TypeVar("Config", bound=RunConfig)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a trainer does in a run, once everything it needs is loaded.

    Attributes:
        state: before the first update; when resuming, the template that the checkpoint is restored into.
        update: makes one update.
        num_updates: updates of the whole run.
        finish: `finish(folder, state)` writes what the run ends with: samples, model, report.
        shown: metrics shown with the progress.
        fingerprints: checksums of what the run reads and its settings only name (the prompts, say), by name; a run
            is resumed with the same alone.
        samples_before: makes the samples from before training; called for a new run only, before its folder is made.
        num_devices: devices that the update runs on.
        unit: what the progress counts, plural.
        units_per_update: how many of them an update is.
    """

    state: PyTree
    update: Update
    num_updates: int
    finish: Callable[[RunFolder, PyTree], None]
    shown: tuple[str, ...]
    fingerprints: dict[str, int] = field(default_factory=dict)
    samples_before: Callable[[], Samples] = list
    num_devices: int = 1
    unit: str = "updates"
    units_per_update: int = 1


def train(config: RunConfig, load: Callable[[], Training]) -> RunFolder:
    """Make a run, or go on with one.

    Args:
        config: its settings.
        load: loads what the trainer needs; called once the settings are known to fit the folder.

    Returns:
        the run's folder, complete.

    Raises:
        InputError: an input is not what it must be; raised before the run folder is made where it can be known then.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite.
        DiskFullError: a file could not be written for lack of space.
    """
    check_observers(config)
    folder = RunFolder(Path(config.out))
    with full_disk_in_words(folder, _from_newest_checkpoint):
        is_resumed = _prepare(config, folder)
        if is_resumed and _has_ended(config, folder):
            tell(_how_to_go_on(config))
            return folder
        training = load()
        _name_idle_devices(training.num_devices)
        if not is_resumed:
            samples = training.samples_before()
            RunFolder.create(folder.path, config.saved())
            storage.append_jsonl(folder.samples_file, samples)
        state = _run_updates(config, folder, training, is_resumed=is_resumed)
        training.finish(folder, state)
        storage.write_atomically(folder.ended_file, "")
    return folder


def train_stage(make: Callable[[Any], RunFolder], config: RunConfig) -> RunFolder:
    """Start or resume a run that is a stage of a chain; one that has ended is returned without a word.

    Args:
        make: makes a run of these settings.
        config: the settings; their `resume` is ignored.

    Raises:
        InputError: the run was started with other settings.
    """
    folder = RunFolder(Path(config.out))
    config = replace(config, resume=folder.config_file.exists())
    if config.resume and _has_ended(config, folder):
        _check_settings(config, folder)
        return folder
    return make(config)


def run_config(kind: type[Config], stage: StageConfig, **fields: Any) -> Config:
    """The settings of a run from those that a stage of a chain was given.

    Args:
        kind: class of the run's settings, which extends the stage's.
        stage: what was given.
        fields: what the chain adds.
    """
    return kind(**({each.name: getattr(stage, each.name) for each in dataclasses.fields(stage)} | fields))


def write_samples_after(folder: RunFolder, after: Samples) -> None:
    """Write the samples from after training behind the others, in place of those of a shorter run."""
    samples = [sample for sample in storage.read_jsonl(folder.samples_file) if sample["phase"] != "after"] + after
    storage.write_atomically(folder.samples_file, "".join(json.dumps(sample) + "\n" for sample in samples))


def _prepare(config: RunConfig, folder: RunFolder) -> bool:
    """Whether there is something to resume; a run that was killed before its first checkpoint begins anew.

    Raises:
        InputError: the folder is taken, there is no run to resume, or it was started with other settings.
    """
    is_begun, is_unstarted = folder.config_file.exists(), storage.is_unstarted(folder, config.saved())
    if config.resume and (is_begun or not is_unstarted):
        _check_settings(config, folder)
    if is_unstarted:
        if is_begun:
            tell(f"{config.out} was stopped before its first checkpoint: starting from scratch")
        storage.empty_folder(folder)
        return False
    if config.resume:
        storage.sweep_leftovers(folder)
    elif folder.path.exists():
        raise InputError(f"out={config.out!r} exists; choose another folder, or --resume to resume that run")
    return config.resume


def _may_differ(config: RunConfig) -> frozenset[str]:
    length = config.length_setting()
    return config.free_settings() | (frozenset() if length is None else {length})


def _check_settings(config: RunConfig, folder: RunFolder) -> None:
    folder.check_settings(config.saved(), ignore=_may_differ(config), defaults=config.defaults())


def _has_ended(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the run has ended, and the settings do not ask for another length."""
    length = config.length_setting()
    is_longer = length is not None and folder.read_config().get(length) != config.saved()[length]
    return folder.ended_file.exists() and not is_longer


def _how_to_go_on(config: RunConfig) -> str:
    length = config.length_setting()
    more = (
        f"give a higher --{length.replace('_', '-')} with --resume to train on"
        if length
        else "its schedules follow its length, so it cannot be made longer: start another run, from its model or "
        "with more updates"
    )
    return f"{config.out}: this run has ended, there is nothing to resume; {more}"


def _name_idle_devices(num_used: int) -> None:
    num_devices = jax.device_count()
    if num_used < num_devices:
        _log.warning("training uses %d of %d devices (%s)", num_used, num_devices, jax.devices()[0].device_kind)


def _run_updates(config: RunConfig, folder: RunFolder, training: Training, *, is_resumed: bool) -> PyTree:
    """Make the updates that are still to do; returns the state after the last."""
    state, num_updates = training.state, training.num_updates
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder.checkpoints_folder, keep=config.keep_checkpoints))
        num_done = 0
        if is_resumed:
            num_done, state, saved = checkpoints.restore(state)
            _check_resumable(num_done, saved, config, training)
            checkpoints.delete_old()
            # The settings last: a longer run's that is refused above must not look like those of an ended one.
            folder.ended_file.unlink(missing_ok=True)
            RunFolder.open(folder.path, config.saved(), ignore=_may_differ(config), defaults=config.defaults())
        else:
            checkpoints.save(0, state, training.fingerprints)
        observers = make_observers(_observed(config, folder, training, num_done))
        for observer in observers:
            stack.enter_context(observer)
        signals = stack.enter_context(_StopSignals())
        while num_done < num_updates:
            try:
                with jax.profiler.StepTraceAnnotation("update", step_num=num_done):
                    state, metrics = training.update(state, num_done)
            except InputError:
                _save(checkpoints, num_done, state, training.fingerprints)
                raise
            num_done += 1
            _check_finite(metrics, num_done, folder, checkpoints)
            for observer in observers:
                observer.write(num_done, metrics)
            if num_done == num_updates or signals.received or num_done % config.save_every == 0:
                _save(checkpoints, num_done, state, training.fingerprints)
            if signals.received:
                raise Interrupted(
                    f"stopped after update {num_done} of {num_updates}, which is saved; "
                    f"the same command with --resume goes on",
                    signals.received,
                )
    return state


def _observed(config: RunConfig, folder: RunFolder, training: Training, num_done: int) -> ObservedRun:
    return ObservedRun(
        config=config,
        folder=folder,
        num_updates=training.num_updates,
        num_done=num_done,
        shown=training.shown,
        unit=training.unit,
        units_per_update=training.units_per_update,
    )


def _check_resumable(num_done: int, saved: dict[str, int], config: RunConfig, training: Training) -> None:
    size = training.units_per_update
    if num_done > training.num_updates:
        raise InputError(
            f"{config.length_setting() or 'num_updates'}={training.num_updates * size}: the run has made "
            f"{num_done * size} already; give at least as many"
        )
    changed = [name for name, value in training.fingerprints.items() if saved.get(name) != value]
    if changed:
        raise InputError(
            f"resume: {', '.join(changed)} changed since the run was started; "
            "restore what it read, or start another run"
        )


def _save(checkpoints: Checkpoints, num_done: int, state: PyTree, fingerprints: dict[str, int]) -> None:
    if num_done > (checkpoints.latest_step() or 0):
        checkpoints.save(num_done, state, fingerprints)


def _check_finite(metrics: dict[str, float], num_done: int, folder: RunFolder, checkpoints: Checkpoints) -> None:
    bad = [
        f"{name}={value}"
        for name, value in metrics.items()
        if name.startswith(("loss/", "reward/", "kl/")) and not math.isfinite(value)
    ]
    if bad:
        good = folder.checkpoints_folder / str(checkpoints.latest_step())
        raise TrainingDivergedError(
            f"update {num_done}: {', '.join(bad)}; the last good checkpoint is {good}. "
            "Lower the learning rate, or check the rewards"
        )


@contextmanager
def full_disk_in_words(folder: RunFolder, how_to_go_on: Callable[[RunFolder], str]) -> Iterator[None]:
    """Turn the errors of a full disk into one that says how to go on.

    Raises:
        DiskFullError: a file could not be written for lack of space.
    """
    try:
        yield
    except Exception as error:
        if not storage.is_full_disk(error):
            raise
        place = folder.path.absolute().parent
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        raise DiskFullError(
            f"the disk of {str(folder.path)!r} is full ({free / 1e6:.1f} MB free): make room, then "
            f"{how_to_go_on(folder)}"
        ) from None


def _from_newest_checkpoint(folder: RunFolder) -> str:
    newest = folder.newest_checkpoint()
    if newest is None:
        return "the same command starts anew"
    return f"the same command with --resume goes on from {newest}"


class _StopSignals:
    """Context in which the first signal sets `received` and the second ends the process as usual.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each, handler in self._previous.items():
            signal.signal(each, handler)
