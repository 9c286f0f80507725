"""Who follows a run: the progress on the terminal, and a warning when there is nothing to learn from."""

import logging
import sys
import time
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)


@runtime_checkable
class Observer(Protocol):
    """A context manager that is given every update's metrics (`storage.MetricsWriter` is one)."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: object) -> None: ...

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Called after each update.

        Args:
            step: updates made so far.
            metrics: by name, `group/name`.
        """
        ...


def tell(message: str) -> None:
    """Say what happens, on standard error."""
    print(message, file=sys.stderr, flush=True)


class ProgressDisplay:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(
        self, *, num_updates: int, num_done: int, shown: tuple[str, ...], unit: str, units_per_update: int
    ) -> None:
        """Set up the bar.

        Args:
            num_updates: of the whole run.
            num_done: made already.
            shown: names of the metrics to show.
            unit: what is counted, plural.
            units_per_update: how many of them an update is.
        """
        self._num_updates, self._start, self._shown = num_updates, num_done, shown
        self._unit, self._size = unit, units_per_update
        self._is_terminal = sys.stderr.isatty()
        self._started = 0.0
        columns: list[Any] = [
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        ]
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not self._is_terminal)
        self._task = self._progress.add_task(
            unit, total=num_updates * units_per_update, completed=num_done * units_per_update, rate="", shown=""
        )

    def __enter__(self) -> Any:
        if self._start < self._num_updates:
            tell("compiling the update: the first one takes longer than those after it ...")
        self._started = time.perf_counter()
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Show the progress and some of the metrics."""
        if step == self._start + 1:
            tell(f"first update done after {time.perf_counter() - self._started:.1f} s, compilation included")
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
