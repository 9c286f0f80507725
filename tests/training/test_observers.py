"""Observers of a run: each in its place, refused where it cannot work, and none of them changes what is learned."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl_lm import distributed
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder, read_metrics, write_report
from jaxrl_lm.training import energy, observers
from jaxrl_lm.training.accelerators import Accelerator
from jaxrl_lm.training.observers import OBSERVERS
from tests.training.counting_trainer import Config, Trainer, kill_at


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(out=str(tmp_path / "run"))


@pytest.fixture
def folder(config: Config) -> RunFolder:
    return RunFolder(Path(config.out))


@pytest.fixture
def energy_file(tmp_path, monkeypatch):
    """The counter of a processor that has used 7 J, of a range of 100 J."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("100000000\n")
    file = zone / "energy_uj"
    file.write_text("7000000\n")
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path / "powercap")
    return file


def using(file: Path, joules: float):
    """Each update uses this much."""

    def at_update(num_done: int) -> None:
        file.write_text(str((int(file.read_text()) + round(joules * 1e6)) % 100_000_000))

    return at_update


def test_the_energy_of_each_update_and_of_all_is_measured_and_a_resumed_run_adds_to_it(config, folder, energy_file):
    Trainer(using(energy_file, 40.5))(config)  # 7, 47.5, 88, 28.5 of 100: it starts again
    energy_file.write_text("99000000")  # used by others between the two
    Trainer(using(energy_file, 10.25))(replace(config, num_updates=5, resume=True))
    curves = read_metrics(folder)
    np.testing.assert_allclose(curves["energy/update"].values, [40.5, 40.5, 40.5, 10.25, 10.25], rtol=1e-12)
    np.testing.assert_allclose(curves["energy/total"].values, [40.5, 81.0, 121.5, 131.75, 142.0], rtol=1e-12)
    assert "energy/cpu" not in curves  # it would be energy/update again


def test_the_energy_of_as_many_devices_as_training_uses_is_measured(config, monkeypatch):
    asked = []
    source = energy.EnergySource(counters=[], is_estimate=True, how="")
    monkeypatch.setattr(observers, "find_source", lambda num_devices: asked.append(num_devices) or source)
    Trainer(num_devices=2)(config)
    assert asked == [2]


def test_a_counter_that_fails_while_training_is_warned_of_once_and_training_continues(
    config, folder, energy_file, caplog
):
    with caplog.at_level(logging.WARNING):
        Trainer(lambda num_done: num_done == 1 and energy_file.unlink())(config)
    [record] = caplog.records
    assert "energy of package-0 cannot be read any more (FileNotFoundError" in record.getMessage()
    curves = read_metrics(folder)
    np.testing.assert_array_equal(curves["energy/total"].steps, [1])
    np.testing.assert_array_equal(curves["loss/total"].steps, [1, 2, 3])


def test_energy_without_a_counter_is_estimated_and_the_report_says_so(config, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    Trainer(samples_before=list)(config)
    curves = read_metrics(folder)
    assert "energy/total" not in curves
    updates, totals = (curves[f"energy/estimated_{name}"].values for name in ("update", "total"))
    np.testing.assert_allclose(np.cumsum(updates), totals)
    assert updates.min() > 0
    page = write_report(folder, title="run").read_text()
    assert "energy, estimated" in page
    assert "estimated: " in page.partition("energy, estimated")[2]


product = jax.jit(lambda x: x @ x)  # 2 * 8^3 operations


def test_the_operations_of_each_update_and_of_all_are_counted_and_a_resumed_run_adds_to_them(
    config, folder, monkeypatch
):
    monkeypatch.setattr(observers, "this_accelerator", lambda: Accelerator(tflops=1e-12, memory_gbs=1.0, watts=None))
    program = distributed.counted(product)
    x, two = np.ones((8, 8), np.float32), {"num_devices": 2, "samples_before": list}
    Trainer(lambda num_done: [program(x) for _ in range(num_done)], **two)(config)
    Trainer(lambda num_done: program(x), **two)(replace(config, num_updates=4, resume=True))
    program(x)  # outside of a run
    curves = read_metrics(folder)
    np.testing.assert_array_equal(curves["flops/update"].steps, [2, 3, 4])  # the first update had none
    np.testing.assert_array_equal(curves["flops/update"].values, [1024, 2048, 1024])
    np.testing.assert_array_equal(curves["flops/total"].values, [1024, 3072, 4096])
    np.testing.assert_allclose(curves["flops/utilization"].values, curves["flops/per_second"].values / 2)
    page = write_report(folder, title="run").read_text()
    assert "4.1 kFLOP" in page


def test_counting_traces_a_program_once_for_each_shape():
    traces = []
    program = distributed.counted(jax.jit(lambda x: traces.append(x.shape) or x @ x.T))
    with distributed.counting() as work:
        for size in (2, 2, 3):
            program(np.ones((size, 4), np.float32))
    assert traces == [(2, 4), (3, 4)]
    assert work.flops == 2 * 4 * (4 + 4 + 9)


def test_wandb_without_its_package_is_refused_before_the_folder_is_made(config, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'jaxrl-lm\[wandb\]'"):
        Trainer()(replace(config, wandb_project="p"))
    assert not folder.path.exists()


def test_a_profile_of_some_updates_is_written(config, folder, capsys):
    step = jax.jit(lambda x: x @ x)
    Trainer(lambda num_done: step(np.ones((8, 8), np.float32)).block_until_ready())(replace(config, profile_updates=1))
    [trace] = folder.profile_folder.rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"lambda" in content
    assert len(list(folder.profile_folder.rglob("*.trace.json.gz"))) == 1
    assert f"profile of updates 2 to 2 in {folder.profile_folder}: view it with" in capsys.readouterr().err


class FakeProfiler:
    """What the profiler was asked to do, among the updates."""

    def __init__(self, monkeypatch):
        self.log: list[str] = []
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: self.log.append("start"))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self.log.append("stop"))

    def __call__(self, num_done: int) -> None:
        self.log.append(str(num_done))


@pytest.mark.parametrize(
    ("num_updates", "log", "said"),
    [
        (4, ["0", "start", "1", "2", "stop", "3"], "profile of steps 11 to 30"),
        (2, ["0", "start", "1", "stop"], "profile of steps 11 to 20"),
        (1, ["0"], "nothing will be profiled"),
    ],
)
def test_updates_after_the_first_are_profiled_as_far_as_there_are_any(
    config, monkeypatch, capsys, num_updates, log, said
):
    profiler = FakeProfiler(monkeypatch)
    Trainer(profiler, unit="steps", units_per_update=10)(replace(config, num_updates=num_updates, profile_updates=2))
    assert profiler.log == log
    assert said in capsys.readouterr().err


def test_a_run_that_fails_while_it_is_profiled_ends_the_profile(config, monkeypatch):
    profiler = FakeProfiler(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        Trainer(lambda num_done: kill_at(1)(num_done) or profiler(num_done))(replace(config, profile_updates=2))
    assert profiler.log == ["0", "start", "stop"]


def test_a_number_of_updates_to_profile_is_not_negative(config):
    with pytest.raises(InputError, match="profile_updates=-1 must be at least 0"):
        replace(config, profile_updates=-1)


def test_observers_may_differ_when_a_run_is_resumed_and_change_nothing(config, folder, energy_file):
    Trainer()(config)
    plain = read_metrics(folder)["loss/total"].values
    longer = Trainer()
    longer(replace(config, num_updates=4, resume=True, profile_updates=1))
    np.testing.assert_array_equal(read_metrics(folder)["loss/total"].values[:3], plain)
    assert longer.made == [3]


def test_those_that_add_metrics_come_before_those_that_write_them():
    names = list(OBSERVERS)
    assert max(map(names.index, ("energy", "flops"))) < min(
        map(names.index, ("metrics", "tensorboard", "wandb", "progress"))
    )
