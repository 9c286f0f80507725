"""Two workers of Ray with two virtual devices each: one run, stopped through the launcher."""

import json
import secrets
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrl_lm.cli.main import run as run_here
from tests.byte_model import write_byte_model
from tests.distributed.test_hosts import free_port, read_metrics, start
from tests.measured import is_measured

ray = pytest.importorskip("ray", reason="ray is not installed; pip install 'jaxrl-lm[ray]'")

NUM_COMPARED = 3
TPU = ["launch", "--ray", "--device=tpu", "--topology=4x4", "--accelerator-type=TPU-V6E"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_byte_model(tmp_path / "model", num_layers=1, model_size=16, num_heads=2, context=32)
    rows = [{"prompt": "a" * length, "completion": "bc" * length} for length in range(1, 9)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = [f"--model={tmp_path / 'model'}", f"--data={tmp_path / 'data.jsonl'}"]
    rate = ["--optimizer.schedule=constant", "--optimizer.warmup-fraction=0", "--optimizer.learning-rate=1e-2"]
    return ["sft", *inputs, *rate, "--batch-size=4", "--num-samples=0", "--save-every=100000"]


def wait_for_updates(run: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while len(read_metrics(run)) < NUM_COMPARED:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_run_of_two_workers_is_that_of_one_process_and_stops_with_the_launcher(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray would write one into the home folder
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    both, one, log = tmp_path / "both", tmp_path / "one", tmp_path / "both.log"
    launcher = ["launch", "--ray", "--workers=2", "--"]
    assert run_here([*command, f"--num-updates={NUM_COMPARED + 1}", f"--out={one}"]) == 0
    launched = start([*launcher, *command, "--num-updates=100000", f"--out={both}"], 2, log)
    wait_for_updates(both, launched, log)
    launched.send_signal(signal.SIGTERM)
    assert launched.wait(timeout=120) == 128 + signal.SIGTERM, log.read_text()
    said = log.read_text()
    assert "the same command with --resume continues the run" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert (both / "checkpoints" / str(read_metrics(both)[-1]["step"])).is_dir()
    for ours, theirs in zip(read_metrics(both)[:NUM_COMPARED], read_metrics(one)[:NUM_COMPARED], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if not is_measured(name):
                np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_launch_uses_exactly_one_tpu_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxrl_lm.cli.main import parse
    from jaxrl_lm.cli.ray_cluster import scaling
    from jaxrl_lm.errors import InputError

    found = scaling(parse([*TPU, "--workers=4"]))
    assert found.use_tpu
    assert found.num_workers == 4
    assert found.resources_per_worker == {"CPU": 1, "TPU": 4}
    with pytest.raises(InputError, match=r"workers=8, .*topology=4x4.* a slice of this kind has 4 workers"):
        scaling(parse([*TPU, "--workers=8"]))
    with pytest.raises(InputError, match="topology=4by4"):
        scaling(parse([*TPU, "--topology=4by4", "--workers=4"]))


def test_a_cluster_that_does_not_answer_is_refused() -> None:
    from jaxrl_lm.cli.main import parse
    from jaxrl_lm.cli.processes import Job
    from jaxrl_lm.cli.ray_cluster import run
    from jaxrl_lm.errors import InputError

    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=f"address='{address}': Ray cannot be used there .*refused"):
        run(Job((), "", {}), parse(["launch", "--ray", "--workers=1"]), address)


def test_after_a_failure_the_other_processes_have_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxrl_lm.cli import ray_workers
    from jaxrl_lm.cli.processes import End

    now = 100.0
    monkeypatch.setattr(ray_workers.time, "monotonic", lambda: now)
    board = ray_workers.Board()
    board.end(End(1, "host", 0))
    board.say("a line\n")
    now += 1000
    assert board.order() == "run"
    board.stop()
    assert board.order() == "stop"
    board.end(End(0, "host", 2, "bad"))
    assert board.order() == "stop"
    now += 11
    assert board.order() == "kill"
    assert board.take().lines == ["a line\n"]
    assert board.take().lines == []
