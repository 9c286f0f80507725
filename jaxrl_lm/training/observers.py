"""What follows a run: energy, operations, profiles, metrics, trackers, progress, warnings. `OBSERVERS` is the table."""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxrl_lm import distributed, storage
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.accelerators import this_accelerator
from jaxrl_lm.training.energy import EnergyMeter, find_source
from jaxrl_lm.training.settings import RunConfig, StageConfig

_log = logging.getLogger(__name__)


@runtime_checkable
class Observer(Protocol):
    """A context manager around the updates of a run, which is called after each of them."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: object) -> None: ...

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Called after each update.

        Args:
            step: updates made so far.
            metrics: by name, `group/name`; what an observer adds is seen by those after it in the table.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ObservedRun:
    """What an observer is made from.

    Attributes:
        config: the run's settings.
        folder: its folder.
        num_updates: updates of the whole run.
        num_done: updates made before; more than 0 if the run resumes.
        shown: names of the metrics to show.
        unit: what the progress counts, plural.
        units_per_update: how many of them an update is.
        num_devices: how many of JAX's devices, the first ones, an update uses.
    """

    config: RunConfig
    folder: RunFolder
    num_updates: int
    num_done: int
    shown: tuple[str, ...]
    unit: str
    units_per_update: int
    num_devices: int


@dataclass(frozen=True, kw_only=True)
class ObserverKind:
    """An entry of `OBSERVERS`.

    Attributes:
        make: makes the observer of a run.
        is_wanted: whether these settings ask for it.
        check: raises an `InputError` where it cannot work; called before anything is written.
    """

    make: Callable[[ObservedRun], Observer]
    is_wanted: Callable[[StageConfig], bool] = lambda config: True
    check: Callable[[StageConfig], object] = lambda config: None


def tell(message: str) -> None:
    """Print a message on standard error."""
    print(message, file=sys.stderr, flush=True)


class ProgressDisplay:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, run: ObservedRun) -> None:
        """Set up the bar."""
        self._num_updates, self._start, self._shown = run.num_updates, run.num_done, run.shown
        self._unit, self._size = run.unit, run.units_per_update
        first = f"{self._size:,} {run.unit}" if self._size > 1 else run.unit.removesuffix("s")
        self._first = f"first {first}"
        self._is_terminal = sys.stderr.isatty()
        self._started = 0.0
        columns: list[Any] = [
            TextColumn(run.unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        ]
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not self._is_terminal)
        self._task = self._progress.add_task(
            run.unit,
            total=self._num_updates * self._size,
            completed=self._start * self._size,
            rate="",
            shown="",
        )

    def __enter__(self) -> Any:
        if self._start < self._num_updates:
            tell(f"compiling; the {self._first} will take longer than what follows ...")
        self._started = time.perf_counter()
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Show the progress and some of the metrics."""
        if step == self._start + 1:
            tell(f"{self._first} done after {time.perf_counter() - self._started:.1f} s, compilation included")
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in self._shown if name in metrics)
        speed = self._progress.tasks[0].speed
        rate = f"{speed:.2f}/s" if speed else ""
        self._progress.update(self._task, completed=step * self._size, rate=rate, shown=shown)
        every = max(1, self._num_updates // 20)
        if not self._is_terminal and (step % every == 0 or step == self._num_updates):
            tell(f"{self._unit} {step * self._size}/{self._num_updates * self._size}  {shown}")


class ConstantReward:
    """Warns once when all rewards of a batch have been equal for several updates in a row."""

    def __init__(self, patience: int = 5) -> None:
        """Set the patience: updates in a row before the warning."""
        self._patience, self._count = patience, 0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Count the updates whose rewards do not differ."""
        self._count = self._count + 1 if metrics.get("reward/std") == 0 else 0
        if self._count == self._patience:
            _log.warning(
                "update %d: in each of the last %d updates all completions had the same reward (now %g), so there is "
                "nothing to learn; check the reward function",
                *(step, self._patience, metrics.get("reward/mean", float("nan"))),
            )


class Profiler:
    """Traces some updates with `jax.profiler`, after the first one, which compiles."""

    def __init__(self, run: ObservedRun) -> None:
        """Set up the profiler; fewer updates are traced where fewer are left."""
        self._folder, self._unit, self._size = run.folder.profile_folder, run.unit, run.units_per_update
        self._num_updates = min(run.config.profile_updates, run.num_updates - run.num_done - 1)
        self._count, self._is_tracing = 0, False

    def __enter__(self) -> "Profiler":
        if self._num_updates == 0:
            tell("nothing will be profiled: only one update is left, and the first one compiles")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_tracing:
            jax.profiler.stop_trace()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Start the trace after the first update, and stop it after the last one that is traced."""
        del metrics
        self._count += 1
        if self._count == 1 and self._num_updates > 0:
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        elif self._is_tracing and self._count > self._num_updates:
            self._is_tracing = False
            jax.profiler.stop_trace()
            first, last = (step - self._num_updates) * self._size + 1, step * self._size
            tell(
                f"profile of {self._unit} {first} to {last} in {self._folder}: view it with "
                f"tensorboard --logdir {self._folder} (pip install tensorboard xprof), or open its .trace.json.gz at "
                "https://ui.perfetto.dev"
            )


class FlopsMeter:
    """Adds the operations of products since the update before to the metrics of each update.

    `flops/update` and `flops/total` are counts, over all devices; `flops/per_second` divides by the time since the
    update before, checkpoints included; `flops/utilization` is its share of the devices' bfloat16 peak, where that is
    known.
    Without products, as in tables, nothing is added.
    """

    def __init__(self, *, peak: float | None, total: float) -> None:
        """Set up the meter.

        Args:
            peak: operations per second of all devices; None if it is not known.
            total: operations of the run so far.
        """
        self._peak, self._total = peak, total
        self._stack, self._last = ExitStack(), 0.0

    def __enter__(self) -> "FlopsMeter":
        self._work = self._stack.enter_context(distributed.counting())
        self._last = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add what was counted since the update before."""
        del step
        flops, now = self._work.flops, time.perf_counter()
        seconds, self._last, self._work.flops = now - self._last, now, 0.0
        if not flops:
            return
        self._total += flops
        metrics |= {"flops/update": flops, "flops/total": self._total, "flops/per_second": flops / seconds}
        if self._peak is not None:
            metrics["flops/utilization"] = flops / seconds / self._peak


def _energy_meter(run: ObservedRun) -> EnergyMeter:
    source = find_source(run.num_devices)
    storage.write_compute_note(run.folder, "energy", source.how)
    return EnergyMeter(source, total=_so_far(run, f"energy/{source.prefix}total"))


def _flops_meter(run: ObservedRun) -> FlopsMeter:
    accelerator, kind = this_accelerator(), jax.devices()[0].device_kind
    note = "counted in the programs: matrix products and convolutions, and of generation what each token needs"
    if accelerator is None:
        peak, of_peak = None, f"the peak of {kind} is not in our table; jaxrl-lm bench measures it"
    else:
        peak = accelerator.tflops * 1e12 * run.num_devices
        of_peak = f"the peak is that of {run.num_devices} {kind} in bfloat16, {accelerator.tflops:g} TFLOP/s each"
    storage.write_compute_note(run.folder, "flops", f"{note}; {of_peak}")
    return FlopsMeter(peak=peak, total=_so_far(run, "flops/total"))


OBSERVERS: dict[str, ObserverKind] = {
    "energy": ObserverKind(make=_energy_meter),
    "flops": ObserverKind(make=_flops_meter),
    "profiler": ObserverKind(
        make=Profiler,
        is_wanted=lambda config: config.profile_updates > 0,
    ),
    "metrics": ObserverKind(make=lambda run: storage.MetricsWriter(run.folder, start_step=run.num_done + 1)),
    "tensorboard": ObserverKind(make=lambda run: storage.TensorBoardWriter(run.folder, start_step=run.num_done + 1)),
    "wandb": ObserverKind(
        make=lambda run: storage.WandbWriter(run.folder, project=str(run.config.wandb_project)),
        is_wanted=lambda config: config.wandb_project is not None,
        check=lambda config: storage.check_wandb(str(config.wandb_project)),
    ),
    "progress": ObserverKind(make=ProgressDisplay),
    "constant reward": ObserverKind(make=lambda run: ConstantReward()),
}
"""Observers by name, in the order in which they see an update: those that add metrics come first."""


def check_observers(config: StageConfig, *, prefix: str = "") -> None:
    """Refuse settings that ask for an observer that cannot work here.

    Args:
        config: settings of a run, or of a stage of a chain.
        prefix: of the options' names in errors, such as `ppo.` for a stage.

    Raises:
        InputError: wandb is not installed.
    """
    for kind in OBSERVERS.values():
        if kind.is_wanted(config):
            try:
                kind.check(config)
            except InputError as error:  # its message begins with the option
                raise InputError(f"{prefix}{error}") from None


def make_observers(run: ObservedRun) -> list[Observer]:
    """The observers that a run's settings ask for."""
    return [kind.make(run) for kind in OBSERVERS.values() if kind.is_wanted(run.config)]


def _so_far(run: ObservedRun, name: str) -> float:
    """The last value of a sum before the updates to be made; 0 where there is none."""
    curve = storage.read_metrics(run.folder).get(name)
    values = [] if curve is None else curve.values[curve.steps <= run.num_done]
    return float(values[-1]) if len(values) else 0.0
