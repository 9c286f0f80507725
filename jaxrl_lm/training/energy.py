"""Energy of a run, in joules: from the processors' own counters (NVML, RAPL), or else from their power and the time.

The counters measure whole devices, so energy that other processes use at the same time is included.

Reference: Linux kernel documentation, Power Capping Framework; NVIDIA, NVML API Reference; Cloud Carbon Footprint,
Methodology.
"""

import importlib
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from jaxrl_lm.training.accelerators import this_accelerator

_POWERCAP = Path("/sys/class/powercap")
_LONGEST_READ = 1.0  # seconds; a slower source is not worth slowing training down
_THREAD_WATTS = 4.26  # of a busy thread of Google Cloud's processors (Cloud Carbon Footprint's median, from SPECpower)

_log = logging.getLogger(__name__)


@runtime_checkable
class Counter(Protocol):
    """An energy counter.

    Attributes:
        kind: `cpu` or `gpu`.
        name: what it measures, for messages.
    """

    kind: str
    name: str

    def joules(self) -> float:
        """Energy since the counter was made."""
        ...


class RaplZone:
    """A RAPL zone of Linux: the cores and caches of a processor, or its memory.

    `energy_uj` counts microjoules and starts again at 0 after `max_energy_range_uj`, so it must be read before it has
    gone through its whole range: at least every two minutes for 65 kJ at 500 W.
    """

    kind = "cpu"

    def __init__(self, folder: Path) -> None:
        """Start counting; `folder` is the zone's, such as /sys/class/powercap/intel-rapl:0."""
        self.name = (folder / "name").read_text(encoding="ascii").strip()
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last, self._microjoules = self._read(), 0

    def joules(self) -> float:
        """Energy since the counter was made."""
        now = self._read()
        self._microjoules += (now - self._last) % self._range
        self._last = now
        return self._microjoules / 1e6

    def _read(self) -> int:
        return int(self._file.read_text(encoding="ascii"))


class NvmlGpu:
    """An NVIDIA GPU, Volta or newer, whose driver counts millijoules in 64 bits."""

    kind = "gpu"

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Start counting; `nvml` is the module pynvml, `handle` the device's."""
        self._nvml, self._handle = nvml, handle
        self.name = str(nvml.nvmlDeviceGetName(handle))
        self._start = self._read()

    def joules(self) -> float:
        """Energy since the counter was made."""
        return (self._read() - self._start) / 1e3

    def _read(self) -> int:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)


class AssumedPower:
    """Devices that are taken to draw their full power all the time."""

    def __init__(self, kind: str, name: str, watts: float) -> None:
        """Start counting; `watts` is the power of all of them."""
        self.kind, self.name, self._watts, self._start = kind, name, watts, time.perf_counter()

    def joules(self) -> float:
        """Energy since the counter was made."""
        return self._watts * (time.perf_counter() - self._start)


class NoCounterError(Exception):
    """The energy of the devices in use cannot be measured; the message says why, and what helps."""


@dataclass(frozen=True, kw_only=True)
class EnergySource:
    """Where joules come from.

    Attributes:
        counters: what to read; empty if nothing is known.
        is_estimate: whether they are not measured.
        how: the same in words, for the report.
    """

    counters: list[Counter]
    is_estimate: bool
    how: str

    @property
    def prefix(self) -> str:
        """What the names of its metrics begin with, behind `energy/`."""
        return "estimated_" if self.is_estimate else ""


class EnergyMeter:
    """Adds the energy since the update before to the metrics of each update, in joules.

    `energy/update` includes what happens between two updates, such as checkpoints; the first one includes compilation.
    `energy/total` is its sum. `energy/cpu` and `energy/gpu` are parts of `energy/update`, where both are measured.
    Estimates are named `energy/estimated_update` and `energy/estimated_total`. A counter that fails or takes too long
    is warned of once, and no more energy is measured.
    """

    def __init__(self, source: EnergySource, *, total: float = 0.0, poll_seconds: float = 30.0) -> None:
        """Set up the meter.

        Args:
            source: what to read.
            total: joules of the run so far.
            poll_seconds: the counters are read at least this often, so that none goes through its range unnoticed.
        """
        self._counters, self._prefix = source.counters, source.prefix
        self._total, self._poll_seconds = total, poll_seconds
        self._last: dict[str, float] | None = None
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name="energy", daemon=True)

    def __enter__(self) -> "EnergyMeter":
        self._last = self._read()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_closed.set()
        self._thread.join()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add the energy of the update to its metrics."""
        del step
        before, now = self._last, self._read()
        if before is None or now is None:
            return
        self._last = now
        spent = {f"energy/{kind}": now[kind] - before[kind] for kind in now}
        update = sum(spent.values())
        self._total += update
        metrics |= {f"energy/{self._prefix}update": update, f"energy/{self._prefix}total": self._total}
        if len(spent) > 1:
            metrics.update(spent)

    def _read(self) -> dict[str, float] | None:
        """Joules by kind since the counters were made; None once reading has failed."""
        with self._lock:
            if not self._counters:
                return None
            found: dict[str, float] = {}
            started = time.perf_counter()
            try:
                for counter in self._counters:
                    found[counter.kind] = found.get(counter.kind, 0.0) + counter.joules()
            except Exception as error:  # each source has its own; none may stop training
                return self._give_up(f"{type(error).__name__}: {error}")
            seconds = time.perf_counter() - started
            return found if seconds <= _LONGEST_READ else self._give_up(f"reading took {seconds:.1f} s")

    def _give_up(self, why: str) -> None:
        names = ", ".join(counter.name for counter in self._counters)
        self._counters = []
        _log.warning("energy of %s cannot be read any more (%s): training continues without it", names, why)

    def _poll(self) -> None:
        while self._counters and not self._is_closed.wait(self._poll_seconds):
            self._read()


def find_source(num_devices: int = 1) -> EnergySource:
    """The counters of the devices that training uses and of the machine's CPUs, or else an estimate from their power.

    Args:
        num_devices: how many of JAX's devices training uses; it uses the first ones.
    """
    try:
        counters = find_counters(num_devices)
    except NoCounterError as error:
        return _estimate(num_devices, str(error))
    kinds = {"gpu": "NVML", "cpu": "RAPL"}
    names = ", ".join(f"{counter.name} ({kinds[counter.kind]})" for counter in counters)
    return EnergySource(counters=counters, is_estimate=False, how=f"measured: {names}")


def _estimate(num_devices: int, reason: str) -> EnergySource:
    device = jax.devices()[0]
    if device.platform == "cpu":
        count, watts, what = _num_threads() * jax.process_count(), _THREAD_WATTS, "processor threads"
    else:
        accelerator = this_accelerator()
        count, watts = num_devices, None if accelerator is None else accelerator.watts
        what = f"{device.device_kind}, its design power"
    if watts is None:
        return EnergySource(counters=[], is_estimate=True, how=f"not known: {reason}; its power is not in our table")
    how = f"estimated: {count} x {watts:g} W ({what}) x seconds, because {reason}"
    return EnergySource(counters=[AssumedPower(device.platform, what, count * watts)], is_estimate=True, how=how)


def _num_threads() -> int:
    """Threads of the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_counters(num_devices: int = 1) -> list[Counter]:
    """The energy counters of the devices that training uses, and of the machine's CPUs where they can be read.

    Args:
        num_devices: how many of JAX's devices training uses; it uses the first ones.

    Raises:
        NoCounterError: these devices have no counter that can be read, or it is not known which GPUs they are.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return _cpus()
    if backend != "gpu":
        raise NoCounterError(f"a {backend} has no energy counter")
    gpus = _gpus(num_devices)
    try:
        return [*gpus, *_cpus()]
    except NoCounterError:
        return gpus


def _cpus() -> list[Counter]:
    """One per processor, and its memory where that is counted apart.

    The zones of `intel-rapl-mmio` are the same counters again, `core` and `uncore` are parts of their package, and
    `psys` contains all others.
    """
    names = {zone: _zone_name(zone) for zone in sorted(_POWERCAP.glob("intel-rapl:*"))}
    zones = [zone for zone, name in names.items() if name.startswith("package") or name == "dram"]
    if not zones:
        raise NoCounterError(
            f"{_POWERCAP} has no RAPL counter of this machine's CPU (virtual machines and containers hide it)"
        )
    try:
        return [RaplZone(zone) for zone in zones]
    except PermissionError:
        raise NoCounterError(
            f"only root may read {_POWERCAP}/intel-rapl:*/energy_uj; let others read it with "
            f"sudo chmod a+r {_POWERCAP}/intel-rapl:*/energy_uj"
        ) from None
    except (OSError, ValueError) as error:
        raise NoCounterError(f"a RAPL counter cannot be read ({error})") from None


def _zone_name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _gpus(num_used: int) -> list[Counter]:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise NoCounterError(
            "the energy of a GPU is read with nvidia-ml-py, which is not installed: pip install nvidia-ml-py"
        ) from None
    try:
        nvml.nvmlInit()
        return [NvmlGpu(nvml, handle) for handle in _used_gpus(nvml, num_used)]
    except nvml.NVMLError as error:
        raise NoCounterError(
            f"NVML does not give the energy of this GPU ({error}); it takes an NVIDIA GPU, Volta or newer, that is not "
            "divided by MIG"
        ) from None


def _used_gpus(nvml: Any, num_used: int) -> list[Any]:
    """Handles of the first GPUs of JAX, whose numbers are places in CUDA_VISIBLE_DEVICES.

    NVML numbers GPUs by their PCI bus; so does CUDA where they are equal or CUDA_DEVICE_ORDER says so.
    """
    count = nvml.nvmlDeviceGetCount()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if visible is None else visible.split(",")
    local = [device for device in jax.devices()[:num_used] if device.process_index == jax.process_index()]
    used = [names[device.local_hardware_id].strip() for device in local]
    numbers = [name for name in used if name.isdigit()]
    if numbers and len(numbers) < count and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        kinds = {str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(index))) for index in range(count)}
        if len(kinds) > 1:
            raise NoCounterError(
                f"this machine has different GPUs ({', '.join(sorted(kinds))}), which CUDA and NVML may number "
                "differently; set the environment variable CUDA_DEVICE_ORDER=PCI_BUS_ID"
            )
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
        for name in used
    ]
