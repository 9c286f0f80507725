"""One run of any trainer: start or resume, update until done or stopped, finish.

A trainer calls `train` with its settings (a `RunConfig`) and a function that loads what it needs (a `Training`). This
module does the rest: the run folder, checkpoints, signals, observers, and checks of settings and inputs on resuming.
"""

import dataclasses
import importlib.metadata
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

from jaxrl_lm import distributed, storage
from jaxrl_lm.distributed import hosts
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.partition import join, split, trained
from jaxrl_lm.storage import Checkpoints, RunFolder, flatten_config
from jaxrl_lm.training.compilation_cache import use_compilation_cache
from jaxrl_lm.training.errors import DiskFullError, Interrupted, TrainingDivergedError
from jaxrl_lm.training.observers import ObservedRun, check_observers, make_observers, tell
from jaxrl_lm.training.settings import RunConfig, StageConfig
from jaxrl_lm.types import PyTree

Update = Callable[[PyTree, int], tuple[PyTree, dict[str, float]]]
"""`update(state, num_done) -> (state, metrics)`: one update and its metrics, as Python numbers. Its randomness depends
on these two arguments only, so that a resumed run repeats the same numbers."""

Samples = list[dict[str, Any]]
Config = TypeVar("Config", bound=RunConfig)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A trainer's part of a run, with everything it needs loaded.

    Attributes:
        state: initial state; when resuming, the template for restoring the checkpoint. Checkpoints lack the frozen
            leaves of a model with adapters, which are those of the initial state.
        update: the update function.
        num_updates: updates of the whole run.
        finish: `finish(folder, state)` writes the results of the run: samples, model, report.
        shown: metrics to show with the progress.
        fingerprints: checksums of inputs that the settings only name, such as the prompts, by name; resuming with
            other inputs is refused.
        samples_before: generates samples before training; only called for a new run, before its folder is created.
        num_devices: number of devices that the update uses where there is no mesh.
        unit: unit of progress, plural.
        units_per_update: units per update.
        score: `score(metrics)`: result of the evaluation in an update's metrics, None if there was none. The checkpoint
            with the highest score is kept.
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
    score: Callable[[dict[str, float]], storage.Score | None] = lambda metrics: None

    def point(self, num_done: int) -> str:
        """The point of the run after some updates, such as "update 3", or "step 4,096" in an environment."""
        return f"{self.unit.removesuffix('s')} {num_done * self.units_per_update:,}"


def train(config: RunConfig, load: Callable[[], Training]) -> RunFolder:
    """Start or resume a run.

    Args:
        config: settings of the run.
        load: loads what the trainer needs; called after the settings were checked against the run folder.

    Returns:
        The folder of the finished run.

    Raises:
        InputError: an input is invalid; raised before the run folder is created where possible.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite.
        DiskFullError: the disk is full.
    """
    use_compilation_cache()
    hosts.start(config.hosts)
    check_observers(config)
    _check_same_run(config)
    folder = RunFolder(hosts.output_folder(Path(config.out)))
    with full_disk_in_words(folder, _from_newest_checkpoint), distributed.use_mesh(config.make_mesh()):
        is_resumed, has_ended = hosts.on_main(lambda: _prepare(config, folder))
        if has_ended:
            tell(_how_to_continue(config))
            return folder
        training = load()
        _name_idle_devices(_num_devices(training))
        if not is_resumed:
            samples = training.samples_before()
            RunFolder.create(folder.path, config.saved())
            storage.append_jsonl(folder.samples_file, samples)
        state = _run_updates(config, folder, training, is_resumed=is_resumed)
        training.finish(folder, state)
        storage.write_atomically(folder.ended_file, "")
    return folder


def _check_same_run(config: RunConfig) -> None:
    """Refuse processes that were started with other settings or versions."""
    versions = {package: importlib.metadata.version(package) for package in ("jaxrl-lm", "jax", "jaxlib")}
    settings = flatten_config(config.saved())
    hosts.check_same({**versions, "the number of settings": len(settings), **settings})


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
    """The settings of a run from those of a stage of a chain.

    Args:
        kind: class of the run's settings, a subclass of the stage's.
        stage: settings of the stage.
        fields: settings that the chain adds.
    """
    return kind(**({each.name: getattr(stage, each.name) for each in dataclasses.fields(stage)} | fields))


def write_samples_after(folder: RunFolder, after: Samples) -> None:
    """Append the samples from after training, and drop those of a shorter run."""
    samples = [sample for sample in storage.read_jsonl(folder.samples_file) if sample["phase"] != "after"] + after
    storage.write_atomically(folder.samples_file, "".join(json.dumps(sample) + "\n" for sample in samples))


def _prepare(config: RunConfig, folder: RunFolder) -> tuple[bool, bool]:
    """Whether the run resumes, and whether there is nothing left to do.

    A run that was killed before its first checkpoint starts from scratch.

    Raises:
        InputError: the folder is in use, there is no run to resume, or it was started with other settings.
    """
    is_begun = folder.config_file.exists()
    is_unstarted = storage.is_unstarted(folder, config.saved(), newer=config.defaults())
    if config.resume and (is_begun or not is_unstarted):
        _check_settings(config, folder)
    if is_unstarted:
        if is_begun:
            tell(f"{config.out} was stopped before its first checkpoint: starting from scratch")
        storage.empty_folder(folder)
        return False, False
    if config.resume:
        storage.sweep_leftovers(folder)
    elif folder.path.exists():
        raise InputError(f"out={config.out!r} exists; choose another folder, or --resume to resume that run")
    return config.resume, config.resume and _has_ended(config, folder)


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


def _how_to_continue(config: RunConfig) -> str:
    length = config.length_setting()
    more = (
        f"give a higher --{length.replace('_', '-')} with --resume to train on"
        if length
        else "its schedules depend on its length, so it cannot be made longer: start another run, from its model or "
        "with more updates"
    )
    return f"{config.out}: this run has ended, there is nothing to resume; {more}"


def _num_devices(training: Training) -> int:
    """The devices that an update uses: those of the mesh, if there is one."""
    mesh = distributed.current_mesh()
    return training.num_devices if mesh is None else mesh.size


def _name_idle_devices(num_used: int) -> None:
    num_devices = jax.device_count()
    if num_used < num_devices:
        _log.warning("training uses %d of %d devices (%s)", num_used, num_devices, jax.devices()[0].device_kind)


def _run_updates(config: RunConfig, folder: RunFolder, training: Training, *, is_resumed: bool) -> PyTree:
    """Make the remaining updates; returns the final state."""
    num_done, state, num_updates = 0, training.state, training.num_updates
    with ExitStack() as stack:
        # All processes write their parts of a checkpoint into the folder of process 0.
        checkpoints_folder = RunFolder(Path(config.out)).checkpoints_folder
        checkpoints = stack.enter_context(Checkpoints(checkpoints_folder, keep=config.keep_checkpoints))
        if is_resumed:
            num_done, state = _resume(config, folder, training, checkpoints)
        else:
            checkpoints.save(0, trained(state), training.fingerprints)
        observers = make_observers(_observed(config, folder, training, num_done)) if distributed.is_main() else []
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
            _check_finite(metrics, training.point(num_done), folder, checkpoints)
            for observer in observers:
                observer.write(num_done, metrics)
            score = training.score(metrics)
            is_due = num_done == num_updates or num_done % config.save_every == 0 or checkpoints.is_best(score)
            received = max(filter(None, hosts.all_values(signals.received)), default=None)
            if is_due or received:
                _save(checkpoints, num_done, state, training.fingerprints, score)
            if received:
                raise Interrupted(
                    f"stopped after {training.point(num_done)} of {num_updates * training.units_per_update:,}, "
                    "which is saved; the same command with --resume continues the run",
                    received,
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
        num_devices=_num_devices(training),
    )


def _resume(config: RunConfig, folder: RunFolder, training: Training, checkpoints: Checkpoints) -> tuple[int, PyTree]:
    """The number of updates done and the state of the newest checkpoint; the folder is made ready for more."""
    template, frozen = split(training.state)
    num_done, restored, saved = checkpoints.restore(template)
    state = join(restored, frozen)
    _check_resumable(num_done, saved, config, training)
    checkpoints.delete_old()
    if not distributed.is_main():
        RunFolder.create(folder.path, config.saved())
        return num_done, state
    # Settings are written last, so that a longer run that is refused above does not change those of the run.
    folder.ended_file.unlink(missing_ok=True)
    RunFolder.open(folder.path, config.saved(), ignore=_may_differ(config), defaults=config.defaults())
    return num_done, state


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


def _save(
    checkpoints: Checkpoints,
    num_done: int,
    state: PyTree,
    fingerprints: dict[str, int],
    score: storage.Score | None = None,
) -> None:
    if num_done > (checkpoints.latest_step() or 0):
        checkpoints.save(num_done, trained(state), fingerprints, score=score)


def _check_finite(metrics: dict[str, float], point: str, folder: RunFolder, checkpoints: Checkpoints) -> None:
    bad = [
        f"{name}={value}"
        for name, value in metrics.items()
        if name.startswith(("loss/", "reward/", "kl/")) and not math.isfinite(value)
    ]
    if bad:
        good = folder.checkpoints_folder / str(checkpoints.latest_step())
        raise TrainingDivergedError(
            f"{point}: {', '.join(bad)}; the last good checkpoint is {good}. "
            "Lower the learning rate, or check the rewards"
        )


@contextmanager
def full_disk_in_words(folder: RunFolder, how_to_continue: Callable[[RunFolder], str]) -> Iterator[None]:
    """Turn the errors of a full disk into one that says how to continue.

    Raises:
        DiskFullError: the disk is full.
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
            f"{how_to_continue(folder)}"
        ) from None


def _from_newest_checkpoint(folder: RunFolder) -> str:
    newest = folder.newest_checkpoint()
    if newest is None:
        return "the same command starts again"
    return f"the same command with --resume continues from {newest}"


class _StopSignals:
    """Context manager in which the first signal sets `received`, and the second one ends the process as usual.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
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
