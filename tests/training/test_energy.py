"""Energy counters: what is read on which machine, exact joules, and what is refused."""

import sys
import time
import types
from pathlib import Path

import jax
import pytest

from jaxrl_lm.training import energy
from jaxrl_lm.training.energy import (
    EnergyMeter,
    EnergySource,
    NoCounterError,
    RaplZone,
    find_counters,
    find_source,
)


def write_zone(folder: Path, name: str, microjoules: int = 0, most: int = 65_532_610_987) -> Path:
    folder.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    return tmp_path


class FakeCounter:
    kind, name = "cpu", "fake"

    def __init__(self, *readings, kind="cpu"):
        self.readings, self.kind = list(readings), kind

    def joules(self):
        return self.readings.pop(0)


class FakeNvml(types.ModuleType):
    """Two GPUs, which have used 1 kJ and 2 kJ since their driver was loaded."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        super().__init__("pynvml")
        self.millijoules = {"GPU-a": 1_000_000, "GPU-b": 2_000_000}
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = lambda index: ["GPU-a", "GPU-b"][index]
        self.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
        self.names = {"GPU-a": "fake", "GPU-b": "fake"}
        self.nvmlDeviceGetName = lambda handle: self.names[handle]
        self.nvmlDeviceGetTotalEnergyConsumption = self._read

    def _read(self, handle):
        if handle not in self.millijoules:
            raise self.NVMLError("Not Supported")
        return self.millijoules[handle]


def measured(counter):
    return EnergySource(counters=[counter], is_estimate=False, how="")


@pytest.fixture
def nvml(monkeypatch, powercap):
    module = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        jax,
        "devices",
        lambda: [
            types.SimpleNamespace(local_hardware_id=place, process_index=0, platform="gpu", device_kind="NVIDIA L4")
            for place in range(2)
        ],
    )
    for variable in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(variable, raising=False)
    return module


def test_a_counter_that_starts_again_at_its_range_loses_no_microjoule(powercap):
    zone = write_zone(powercap / "intel-rapl:0", "package-0", 900, most=1_000)
    counter = RaplZone(zone)
    for microjoules, joules in ((950, 50e-6), (20, 120e-6), (20, 120e-6), (999, 1_099e-6), (0, 1_100e-6)):
        (zone / "energy_uj").write_text(str(microjoules))
        assert counter.joules() == pytest.approx(joules, abs=1e-12)


def test_each_processor_and_its_memory_are_counted_once(powercap):
    for folder, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:1", "dram"),
        ("intel-rapl:1", "package-1-die-0"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        write_zone(powercap / folder, name)
    (powercap / "intel-rapl").mkdir()  # the control type, no zone
    assert [counter.name for counter in find_counters()] == ["package-0", "dram", "package-1-die-0"]


def test_a_counter_that_only_root_may_read_is_refused_with_the_remedy(powercap, monkeypatch):
    write_zone(powercap / "intel-rapl:0", "package-0")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(RaplZone, "_read", refuse)
    with pytest.raises(NoCounterError, match=r"only root .* sudo chmod a\+r .*/intel-rapl:\*/energy_uj"):
        find_counters()


@pytest.mark.parametrize("value", ["", "many"])
def test_a_counter_that_holds_no_number_is_refused(powercap, value):
    (write_zone(powercap / "intel-rapl:0", "package-0") / "energy_uj").write_text(value)
    with pytest.raises(NoCounterError, match="a RAPL counter cannot be read"):
        find_counters()


@pytest.mark.parametrize(
    ("visible", "num_used", "joules"),
    [
        (None, 1, [1.0]),
        (None, 2, [1.0, 20.0]),
        ("1", 1, [20.0]),
        ("1,0", 1, [20.0]),
        (" 1, 0", 2, [20.0, 1.0]),
        ("GPU-b,GPU-a", 1, [20.0]),
    ],
)
def test_the_gpus_that_training_uses_are_counted_from_now_on(nvml, monkeypatch, visible, num_used, joules):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    counters = find_counters(num_used)
    nvml.millijoules = {"GPU-a": 1_001_000, "GPU-b": 2_020_000}
    assert [counter.joules() for counter in counters] == joules


@pytest.mark.parametrize(
    ("variables", "num_used", "is_known"),
    [
        ({}, 1, False),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1, False),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, 1, False),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 1, True),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a"}, 1, True),
        ({}, 2, True),  # their sum is the same in any order
    ],
)
def test_one_of_different_gpus_is_refused_unless_cuda_numbers_them_as_nvml_does(
    nvml, monkeypatch, variables, num_used, is_known
):
    nvml.names["GPU-b"] = "other"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if is_known:
        assert len(find_counters(num_used)) == num_used
        return
    with pytest.raises(NoCounterError, match=r"different GPUs \(fake, other\).* set .*CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        find_counters(num_used)


def test_a_gpu_and_its_machines_processor_are_added_and_shown_apart(nvml, powercap):
    zone = write_zone(powercap / "intel-rapl:0", "package-0")
    metrics: dict[str, float] = {}
    with EnergyMeter(find_source(2), total=100.0) as meter:
        nvml.millijoules = {"GPU-a": 1_003_000, "GPU-b": 2_004_000}
        (zone / "energy_uj").write_text("500000")
        meter.write(1, metrics)
    assert metrics == pytest.approx(
        {"energy/update": 7.5, "energy/total": 107.5, "energy/gpu": 7.0, "energy/cpu": 0.5}, abs=1e-9
    )


def test_a_gpu_without_its_package_is_estimated_from_its_design_power(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    source = find_source(2)
    assert source.is_estimate
    assert source.how.startswith("estimated: 2 x 72 W (NVIDIA L4, its design power) x seconds, because")
    assert source.how.endswith("pip install nvidia-ml-py")


def test_a_gpu_without_a_counter_is_refused_though_the_processor_has_one(nvml, powercap):
    write_zone(powercap / "intel-rapl:0", "package-0")
    nvml.millijoules.pop("GPU-a")
    with pytest.raises(NoCounterError, match=r"NVML .* \(Not Supported\)"):
        find_counters()


@pytest.mark.parametrize(("kind", "how"), [("TPU v4", "4 x 192 W"), ("TPU v5 lite", "its power is not in our table")])
def test_a_tpu_is_estimated_where_its_power_is_published(monkeypatch, kind, how):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="tpu", device_kind=kind)])
    source, metrics = find_source(4), {}
    assert how in source.how
    with EnergyMeter(source) as meter:
        meter.write(1, metrics)
    assert bool(metrics) == bool(source.counters) == ("192" in how)


def test_an_estimate_is_power_times_time_and_is_named_so(powercap, monkeypatch):
    monkeypatch.setattr(energy, "_num_threads", lambda: 3)
    source = find_source()
    assert "estimated: 3 x 4.26 W (processor threads) x seconds, because" in source.how
    assert f"{powercap} has no RAPL counter" in source.how
    [counter] = source.counters
    metrics: dict[str, float] = {}
    with EnergyMeter(source, total=100.0) as meter:
        monkeypatch.setattr(counter, "joules", iter([50.0]).__next__)
        meter._last = {"cpu": 10.0}
        meter.write(1, metrics)
    assert metrics == {"energy/estimated_update": 40.0, "energy/estimated_total": 140.0}


def test_the_assumed_power_is_drawn_all_the_time(monkeypatch):
    now = iter([100.0, 102.5])
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(now))
    assert energy.AssumedPower("gpu", "two of them", 144.0).joules() == 2.5 * 144.0


def test_a_source_that_is_slow_is_read_once_and_then_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(energy, "_LONGEST_READ", -1.0)
    counter, metrics = FakeCounter(0.0, 1.0, 2.0), {}
    with EnergyMeter(measured(counter)) as meter:
        meter.write(1, metrics)
        meter.write(2, metrics)
    assert metrics == {}
    assert counter.readings == [1.0, 2.0]
    assert [record.getMessage().startswith("energy of fake cannot be read any more") for record in caplog.records] == [
        True
    ]


def test_counters_are_read_between_updates_too(powercap):
    zone = write_zone(powercap / "intel-rapl:0", "package-0", 0, most=1_000)
    metrics: dict[str, float] = {}
    counter = RaplZone(zone)
    with EnergyMeter(measured(counter), poll_seconds=0.001) as meter:
        for microjoules in (600, 200, 800):  # 1,800 in all: more than the range
            (zone / "now").write_text(str(microjoules))
            (zone / "now").replace(zone / "energy_uj")
            deadline = time.monotonic() + 10
            while counter._last != microjoules:  # until the thread has seen it
                assert time.monotonic() < deadline
        meter.write(1, metrics)
    assert metrics["energy/update"] == pytest.approx(1_800e-6, abs=1e-12)
