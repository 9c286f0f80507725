"""Metrics as TensorBoard events and in Weights & Biases."""

import errno
import math
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder, TensorBoardWriter, WandbWriter


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"seed": 3})


def read_events(folder):
    """Parse the event files: records of length, checksum, bytes, checksum."""
    events = []
    for path in sorted(folder.tensorboard_folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return events


def test_tensorboard_gets_the_same_finite_values(folder):
    with TensorBoardWriter(folder, start_step=1) as writer:
        writer.write(1, {"reward/mean": 1.5})
        writer.write(4, {"reward/mean": 2.5, "loss/policy": math.nan})
    scalars = [(e.step, v.tag, v.simple_value) for e in read_events(folder) for v in e.summary.value]
    assert scalars == [(1, "reward/mean", 1.5), (4, "reward/mean", 2.5)]


def test_resuming_tells_tensorboard_from_which_step_on_to_drop(folder):
    for start_step in (1, 3):
        with TensorBoardWriter(folder, start_step=start_step) as writer:
            writer.write(start_step, {"reward/mean": 1.0})
    starts = [e.step for e in read_events(folder) if e.session_log.status == SessionLog.START]
    assert starts[-1] == 3


def test_wandb_gets_the_values_and_a_resumed_run_keeps_its_id(folder, tmp_path, monkeypatch):
    starts, logged = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    module = types.SimpleNamespace(init=lambda **options: starts.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    other = RunFolder.create(tmp_path / "other", {"seed": 4})
    for each, step in ((folder, 1), (folder, 3), (other, 1)):
        with WandbWriter(each, project="p") as writer:
            writer.write(step, {"a/b": 1.0})
    assert logged == [(1, {"a/b": 1.0}), (3, {"a/b": 1.0}), (1, {"a/b": 1.0})]
    assert [start["project"] for start in starts] == ["p"] * 3
    assert starts[0]["config"] == {"seed": 3}
    first, resumed, another = (start["id"] for start in starts)
    assert first == resumed != another


def test_a_run_that_wandb_does_not_start_is_refused_with_the_remedy(folder, monkeypatch):
    def fail(**options):
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=fail))
    message = r"wandb_project='p': .*\(RuntimeError: api_key not configured .*run `wandb login`.*--wandb-project out"
    with pytest.raises(InputError, match=message):
        WandbWriter(folder, project="p")


def test_a_full_disk_is_raised_by_closing_once_and_leaves_no_thread_behind(folder, monkeypatch):
    writer = TensorBoardWriter(folder, start_step=1)
    events = writer._writer.file_writer.event_writer

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events, "flush", fail)
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert not events._worker.is_alive()
    events.close()  # as tensorboardX does when the process ends
