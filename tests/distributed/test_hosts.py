"""Two processes of four virtual devices each: one run, interrupted, killed, and resumed on other devices."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrl_lm.cli.console import result_console
from jaxrl_lm.cli.main import run as run_here
from jaxrl_lm.distributed import HostsConfig
from jaxrl_lm.distributed.roll_call import call_roll
from jaxrl_lm.errors import InputError
from tests.byte_model import write_byte_model
from tests.distributed import staged_decoding
from tests.measured import is_measured

SLOW_REWARD = """
import time

def reward(prompts, completions, **columns):
    time.sleep(0.5)
    return [completion.count("a") - 0.1 * len(completion.strip()) for completion in completions]
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(
    command: list[str], num_devices: int, log: Path, module: str = "jaxrl_lm.cli.main"
) -> subprocess.Popen[bytes]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    return subprocess.Popen(
        [sys.executable, "-m", module, *command],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
    )


class TwoProcesses:
    """A command in two processes."""

    def __init__(self, command: list[str], folder: Path) -> None:
        hosts = ["--hosts.coordinator", f"127.0.0.1:{free_port()}", "--hosts.num-processes", "2"]
        self.logs = [folder / f"process{number}.log" for number in range(2)]
        self.processes = [
            start([*command, *hosts, "--hosts.process-id", str(number)], 4, self.logs[number]) for number in range(2)
        ]

    def wait(self) -> list[int]:
        return [process.wait(timeout=240) for process in self.processes]

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_step(run: Path, step: int, both: TwoProcesses) -> None:
    deadline = time.monotonic() + 240
    while not any(each["step"] >= step for each in read_metrics(run)):
        assert time.monotonic() < deadline, both.said()
        assert all(process.poll() is None for process in both.processes), both.said()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    write_byte_model(folder / "model", num_layers=1, model_size=16, num_heads=2, context=32)
    (folder / "prompts.txt").write_text("ab\nabcde\na\n")
    (folder / "rewards.py").write_text(SLOW_REWARD)
    options = {
        "--model": folder / "model",
        "--prompts": folder / "prompts.txt",
        "--reward": f"{folder / 'rewards.py'}:reward",
        "--num-updates": 8,
        "--batch-size": 8,
        "--num-samples": 2,
        "--save-every": 1,
        "--answers.max-new-tokens": 5,
        "--policy.learning-rate": 1e-2,
        "--group-size": 2,
    }
    return ["rloo", *(str(part) for option in options.items() for part in option)]


def test_a_run_of_two_processes_is_that_of_one_also_if_stopped_killed_and_resumed_elsewhere(command, tmp_path):
    run = tmp_path / "two"
    both = TwoProcesses([*command, "--out", str(run)], tmp_path)
    wait_for_step(run, 2, both)
    both.processes[1].send_signal(signal.SIGTERM)
    assert both.wait() == [128 + signal.SIGTERM] * 2, both.said()
    stopped_at = read_metrics(run)[-1]["step"]
    assert (run / "checkpoints" / str(stopped_at)).is_dir()

    both = TwoProcesses([*command, "--out", str(run), "--resume"], tmp_path)
    wait_for_step(run, stopped_at + 2, both)
    for process in both.processes:
        process.kill()
    both.wait()

    assert run_here([*command, "--out", str(tmp_path / "one")]) == 0
    last = start([*command, "--out", str(run), "--resume"], 2, tmp_path / "last.log")
    assert last.wait(timeout=240) == 0, (tmp_path / "last.log").read_text()
    expected, found = read_metrics(tmp_path / "one"), read_metrics(run)
    assert [each["step"] for each in found] == list(range(1, 9))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if not is_measured(name) and not name.startswith("flops/"):  # meshes pack into other rows
                np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in (tmp_path / "one").iterdir())
    assert (run / "model" / "model.safetensors").is_file()


def test_two_processes_decode_in_stages_what_one_device_decodes(tmp_path):
    out, port = tmp_path / "found.npz", str(free_port())
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    both = [
        start([port, str(number), str(out)], 4, log, "tests.distributed.staged_decoding")
        for number, log in enumerate(logs)
    ]
    assert [process.wait(timeout=240) for process in both] == [0, 0], logs[0].read_text()
    expected, _ = staged_decoding.completions(None)
    found = np.load(out)
    assert found["num_passed"] > 0
    np.testing.assert_array_equal(found["sequences"], expected["sequences"])
    np.testing.assert_array_equal(found["response_mask"], expected["response_mask"])
    np.testing.assert_allclose(found["log_probs"], expected["log_probs"], atol=1e-5)


def test_only_the_process_that_writes_prints_results(monkeypatch, capsys):
    result_console().print("written")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    result_console().print("not written")
    assert capsys.readouterr().out == "written\n"


def test_processes_with_other_settings_are_refused_on_all_of_them(command, tmp_path):
    port, processes, logs = free_port(), [], []
    for number, rate in enumerate(("1e-2", "1e-3")):
        logs.append(tmp_path / f"{number}.log")
        hosts = ["--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.num-processes", "2"]
        changed = ["--policy.learning-rate", rate, "--out", str(tmp_path / "run")]
        processes.append(start([*command, *changed, *hosts, "--hosts.process-id", str(number)], 1, logs[-1]))
    assert [process.wait(timeout=120) for process in processes] == [2, 2]
    for log in logs:
        assert (
            "policy.learning_rate differs between processes: 0.01 in process 0, 0.001 in process 1" in log.read_text()
        )
    assert not (tmp_path / "run").exists()


def test_a_process_that_does_not_come_is_named():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=r"process 1, 2 of 3 did not reach 127.0.0.1:\d+ within 1 s"):
        call_roll(address, 3, 0, timeout=1.0)
    with pytest.raises(InputError, match=r"process 0 of 3 did not reach"):
        call_roll(address, 3, 2, timeout=1.0)


@pytest.mark.parametrize("address", ["somewhere", "host:", "host:x", ":80", "host:99999"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(InputError, match="must be HOST:PORT"):
        call_roll(address, 2, 0, timeout=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_processes": 2}, "need HOST:PORT"),
        ({"coordinator": "auto", "process_id": 0}, "need HOST:PORT"),
        ({"coordinator": "h:1"}, "needs --hosts.num-processes"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "must be below hosts.num_processes=2"),
        ({"timeout": 0}, "hosts.timeout=0"),
    ],
)
def test_settings_that_do_not_say_where_the_others_are_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        HostsConfig(**settings)
