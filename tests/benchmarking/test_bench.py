"""`jaxrl-lm bench`: every suite runs with tiny sizes, and falls below an earlier measurement are named."""

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxrl_lm.benchmarking import measuring, scaling, timing
from jaxrl_lm.benchmarking.config import BenchConfig
from jaxrl_lm.benchmarking.measuring import Bench, Ceilings, Figure
from jaxrl_lm.benchmarking.results import Measurement, baseline_file, falls, merged, read_measurement
from jaxrl_lm.benchmarking.scaling import Measured, Series, _figure
from jaxrl_lm.cli import bench as command
from jaxrl_lm.cli.main import run
from jaxrl_lm.errors import InputError
from tests.byte_model import write_byte_model

CEILINGS = Ceilings(products={"float32": 1e9, "bfloat16": 2e9}, bandwidth=1e8, peak=1e10)


def figure(value: float, unit: str = "steps/s") -> Figure:
    return Figure(value=value, unit=unit, seconds={"min": 1.0, "median": 1.0, "max": 1.0}, first_call=2.0)


def measurement(**values: float) -> Measurement:
    return Measurement(
        model="tiny",
        sizes=BenchConfig(quick=True).sized().sizes(),
        environment={"device": timing.device_name()},
        ceilings=CEILINGS,
        figures={name: figure(value) for name, value in values.items()},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=96)
    return folder


def test_every_suite_runs_and_is_kept_for_comparison(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "bench.json", tmp_path / "baselines"
    options = ["--quick", f"--model={model}", f"--out={out}", f"--baselines={folder}", "--save-baseline"]
    assert run(["bench", *options]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "share the cores of one CPU" in shown
    found = read_measurement(out)
    assert found == read_measurement(baseline_file(folder, timing.device_name(), "tiny"))
    names = "maze-position maze-grid ppo pqn q-learning"
    assert [name for name in found.figures if name.startswith("env/")] == [f"env/{name}" for name in names.split()]
    names = "generate score ppo-step ppo-update grpo-step grpo-update"
    assert [name for name in found.figures if name.startswith("lm/")] == [f"lm/{name}" for name in names.split()]
    for name, each in found.figures.items():
        assert each.value > 0, name
        assert 0 < each.seconds["median"] < each.first_call, name
    for part in ("step", "update"):
        assert found.figures[f"lm/ppo-{part}"].flops > 0
    assert found.figures["lm/ppo-step"].facts["ratio/first_max_error"] < 1e-4
    assert found.figures["lm/generate"].shares["bandwidth"] > 0
    assert any(note.startswith("scale/lm-tensor-2: mesh.tensor=2 does not divide vocab_size") for note in found.notes)
    for mesh in ("data", "fsdp"):
        facts = found.figures[f"scale/lm-{mesh}-2"].facts
        assert facts["loss_error"] < 1e-5
        assert sum(size for name, size in facts.items() if name.endswith("_mb")) > 0
    assert "loss_error" not in found.figures["scale/lm-weak-2"].facts
    for name, rows in {"lm-1": 2, "lm-data-2": 2, "lm-weak-1": 1, "lm-weak-2": 2}.items():
        each = found.figures[f"scale/{name}"]
        assert each.value * each.seconds["median"] == pytest.approx(rows * 2 * 3), name  # 3 tokens of each of two texts
    assert found.figures["scale/env-data-2"].facts["loss_error"] < 1e-3


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for, the same two figures are measured."""
    monkeypatch.setattr(command, "measure", lambda config, surroundings: [measurement(a=70.0, b=100.0)])


@pytest.mark.usefixtures("measured")
def test_a_fall_below_the_earlier_measurement_fails_and_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["bench", "--quick", "--suite", "env", "--model=tiny"]
    options += [f"--out={tmp_path / 'out.json'}", f"--baselines={tmp_path}"]
    assert run(options) == 0
    assert "no earlier measurement" in capfd.readouterr().out
    measurement(a=100.0, b=101.0, c=5.0).write(baseline_file(tmp_path, timing.device_name(), "tiny"))
    assert run(options) == 1
    said = capfd.readouterr()
    assert said.err == "jaxrl-lm: a fell by 30%, from 100 to 70 steps/s\n"
    assert "-30%" in said.out
    assert run([*options, "--max-fall=0.31"]) == 0


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("content", ["{", "[]", '{"figures": {"a": {"value": 1}}}'])
def test_a_damaged_earlier_measurement_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    baseline_file(tmp_path, timing.device_name(), "tiny").write_text(content)
    options = ["--quick", "--suite=env", "--model=tiny", f"--out={tmp_path / 'out.json'}", f"--baselines={tmp_path}"]
    assert run(["bench", *options]) == 2
    assert "correct or delete the file" in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out.json").exists()


@pytest.mark.usefixtures("measured")
def test_an_earlier_measurement_with_other_sizes_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    measurement(a=1.0).write(baseline_file(tmp_path, timing.device_name(), "tiny"))
    options = ["bench", "--suite=env", "--model=tiny", f"--out={tmp_path / 'out.json'}", f"--baselines={tmp_path}"]
    assert run(options) == 2
    assert "was measured with num_answers=2, num_tokens=3" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": ("gpu",)}, "suite='gpu' is not one of env, lm, scale"),
        ({"suite": ()}, "suite: name at least one"),
        ({"devices": (2, 4)}, "must rise from 1"),
        ({"num_answers": 6}, "must be a multiple of 4"),
        ({"max_fall": 1.5}, "max_fall=1.5"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchConfig(**settings)


def test_an_unknown_suite_is_a_mistake_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--suite", "gpu"]) == 2
    assert "gpu" in capfd.readouterr().err


def test_a_model_that_does_not_exist_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    assert run(["bench", "--suite=lm", f"--model={tmp_path / 'none'}"]) == 2


def test_figures_of_other_suites_are_kept_where_the_sizes_are_the_same() -> None:
    earlier = measurement(a=1.0, b=2.0)
    assert merged(measurement(b=3.0), earlier).figures == {"a": figure(1.0), "b": figure(3.0)}
    assert list(merged(replace(measurement(b=3.0), sizes={}), earlier).figures) == ["b"]


def test_only_falls_beyond_the_limit_count() -> None:
    assert falls(measurement(a=80.0, new=1.0), measurement(a=100.0, gone=1.0), 0.2) == []
    assert len(falls(measurement(a=79.9), measurement(a=100.0), 0.2)) == 1


def test_names_of_devices_and_models_make_a_file_name() -> None:
    file = baseline_file(Path("x"), "NVIDIA H100 80GB HBM3", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert file == Path("x/nvidia-h100-80gb-hbm3--smollm2-135m-instruct.json")


def test_a_measurement_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = replace(measurement(a=1.0), notes=("a note",))
    whole.write(tmp_path / "folder" / "m.json")
    assert read_measurement(tmp_path / "folder" / "m.json") == whole
    assert json.loads((tmp_path / "folder" / "m.json").read_text())["figures"]["a"] == asdict(figure(1.0))


def test_shares_are_those_of_what_was_measured_and_of_the_published_peak() -> None:
    bench = Bench(ceilings=CEILINGS, repeats=1)
    assert bench.shares(5e8, 0.5, "bfloat16", 1e7) == pytest.approx({"products": 0.5, "peak": 0.1, "bandwidth": 0.2})
    assert bench.shares(0.0, 0.5, "float32") == {}


def test_ceilings_are_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "timed", lambda call, repeats: {"median": 0.5})
    monkeypatch.setattr(measuring, "this_accelerator", lambda: SimpleNamespace(tflops=3.0))
    found = measuring.measure_ceilings(size=4, num_values=100, repeats=1)
    assert found == Ceilings(products={"float32": 256.0, "bfloat16": 256.0}, bandwidth=2400.0, peak=3e12)


def test_efficiency_is_1_where_n_devices_do_n_times_the_work_in_the_same_time() -> None:
    one = Measured(amount=8.0, seconds=[1.0, 9.0, 1.0], first_call=5.0, losses=[2.0, 1.0], received={})
    four = Measured(amount=32.0, seconds=[2.0], first_call=5.0, losses=[2.0, 1.1], received={"all-reduce": 3e6})
    same = Series("env-data", "env", "steps/s", True, lambda count: one)
    found = _figure(four, one, 4, same)
    assert found.value == 16.0
    assert found.facts == pytest.approx({"efficiency": 0.5, "loss_error": 0.1, "all-reduce_mb": 3.0})
    assert "loss_error" not in _figure(four, one, 4, same._replace(is_same=False)).facts


def test_copies_of_a_model_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "available_bytes", lambda: 100_000)
    scaling._check_memory(1000, "fsdp", 8)
    scaling._check_memory(1000, "data", 4)
    with pytest.raises(InputError, match=r"8 copies of the model take about 0\.000192 GB of 0\.0001 GB"):
        scaling._check_memory(1000, "data", 8)


def test_a_trace_of_one_more_call_is_written_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = []
    monkeypatch.setattr(jax.profiler, "trace", lambda folder: nullcontext(traces.append(folder)))
    for profile in (None, tmp_path):
        Bench(ceilings=CEILINGS, repeats=1, profile=profile).measure("env/x", lambda: 0, amount=1.0, unit="steps/s")
    assert traces == [tmp_path / "env-x"]


def test_the_first_call_is_apart_from_the_median() -> None:
    calls = []
    program = jax.jit(lambda x: calls.append(0) or x + 1)
    found = Bench(ceilings=CEILINGS, repeats=3).measure("x", lambda: program(np.ones(2)), amount=6.0, unit="steps/s")
    assert len(calls) == 1  # traced once
    assert found.value == 6.0 / found.seconds["median"]
    assert found.first_call > found.seconds["median"]
