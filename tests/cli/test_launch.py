"""`launch`: what it refuses, and how the ends of several processes become one; distributed/test_ray.py runs it."""

import signal
import sys
from pathlib import Path

import pytest

from jaxrl_lm.cli import launch
from jaxrl_lm.cli.launch import passed_on, raise_end
from jaxrl_lm.cli.main import parse, run
from jaxrl_lm.cli.processes import End
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.errors import Interrupted, RunFailedError

LAUNCH = ["launch", "--ray", "--workers=2"]
TRAIN = ["train", "q-learning", "--out=o"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["launch", "--workers=2", "--", *TRAIN], ["ray=False", "--ray"]),
        (["launch", "--ray", "--workers=0", "--", *TRAIN], ["workers=0", "at least 1"]),
        (LAUNCH, ["command: none is given", "after --"]),
        ([*LAUNCH, "--"], ["command: none is given", "after --"]),
        ([*LAUNCH, "--", "grop", "--out=o"], ["'grop'", "did you mean grpo?"]),
        ([*LAUNCH, "--", "merge", "--out=o"], ["command='merge' cannot run on several hosts", "grpo", "train ppo"]),
        ([*LAUNCH, "--", "launch", *LAUNCH[1:]], ["command='launch' cannot run on several hosts"]),
        ([*LAUNCH, "--", *TRAIN, "--discount=2"], ["discount=2", "jaxrl-lm train q-learning --help"]),
        ([*LAUNCH, "--", *TRAIN, "--hosts.coordinator=auto"], ["hosts.coordinator='auto'", "leave"]),
        ([*LAUNCH, "--resources-per-worker", "CPU", "--", *TRAIN], ["resources_per_worker='CPU'", "KEY=VALUE"]),
        ([*LAUNCH, "--resources-per-worker", "CPU=0", "--", *TRAIN], ["'CPU=0'", "above 0"]),
        ([*LAUNCH, "--resources-per-worker", "CPU=nan", "--", *TRAIN], ["'CPU=nan'", "above 0"]),
        ([*LAUNCH, "--resources-per-worker", "CPU=1", "CPU=2", "--", *TRAIN], ["CPU comes twice"]),
        ([*LAUNCH, "--resources-per-worker", "GPU=1", "--", *TRAIN], ["device=cpu", "--device gpu"]),
        ([*LAUNCH, "--topology=4x4", "--", *TRAIN], ["topology=4x4", "--device tpu"]),
        ([*LAUNCH, "--device=tpu", "--topology=4x4", "--", *TRAIN], ["accelerator_type=None", "TPU-V6E"]),
    ],
)
def test_bad_input_is_refused_before_ray_is_needed(
    args: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    message = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert all(word in message for word in words), message


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name in launch._ray_settings("local", {}):
        monkeypatch.setenv(name, "0")  # restored afterwards
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "jaxrl_lm.cli.ray_cluster", raising=False)
    monkeypatch.delattr("jaxrl_lm.cli.ray_cluster", raising=False)
    assert run([*LAUNCH, "--", *TRAIN]) == 2
    assert "pip install 'jaxrl-lm[ray]'" in capfd.readouterr().err


def test_what_follows_the_dashes_belongs_to_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text("workers: 3\nresources_per_worker: [CPU=4, memory=64e9]\n")
    command = ("train", "ppo", "--config", "train.yaml", "--out", "o")
    config = parse(["launch", "--ray", f"--config={file}", "--", *command])
    assert config.command == command
    assert config.workers == 3
    assert config.resources() == {"CPU": 4, "memory": 64_000_000_000}
    assert run([*LAUNCH, "--", "train", "ppo", "--help"]) == 0
    assert "jaxrl-lm train ppo" in capfd.readouterr().out


def test_variables_of_the_run_are_passed_on_and_no_others() -> None:
    given = {"XLA_FLAGS": "f", "JAXRL_LM_X": "x", "PYTHONPATH": "p", "HOME": "h", "AWS_SECRET": "s"}
    assert passed_on(given, "gpu") == {"XLA_FLAGS": "f", "JAXRL_LM_X": "x", "PYTHONPATH": "p", "JAX_PLATFORMS": "cuda"}
    assert passed_on({"JAX_PLATFORMS": "cpu"}, "tpu") == {"JAX_PLATFORMS": "cpu"}


def end(process: int, code: int, message: str | None = None) -> End:
    return End(process, "host", code, message, tail="Traceback\nKeyError: 'x'")


@pytest.mark.parametrize(
    ("ends", "kind", "words"),
    [
        ([end(1, 2, "prompts='p' is missing"), end(0, -9)], InputError, "prompts='p' is missing"),
        ([end(0, 1, "loss is nan"), end(1, 1, "loss is nan")], RunFailedError, "loss is nan"),
        ([end(1, 1), end(0, -6)], RunFailedError, "process 1 on host ended with code 1; .*\nTraceback\nKeyError: 'x'"),
        ([end(1, 2)], RunFailedError, "with code 2"),
        ([end(1, -9), end(0, -6)], RunFailedError, "process 1 on host ended by signal 9"),
        ([end(0, 0)], RunFailedError, "1 of 2 processes were lost"),
    ],
)
def test_the_first_process_that_failed_says_why(ends: list[End], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        raise_end(ends, 2, None)


def test_a_stopped_run_has_the_signal_of_the_launcher_or_else_its_own() -> None:
    stopped = [end(0, 128 + signal.SIGTERM, "stopped after step 3"), end(1, -signal.SIGTERM)]
    for received, expected in ((signal.SIGINT, signal.SIGINT), (None, signal.SIGTERM)):
        with pytest.raises(Interrupted, match="stopped after step 3") as stop:
            raise_end(stopped, 2, received)
        assert stop.value.signal_number == expected
    raise_end([end(1, 0), end(0, 0)], 2, None)
