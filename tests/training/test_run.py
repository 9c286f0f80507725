"""A run of any trainer: start, stop, resume, what a kill or a full disk leaves, and what is said on the way."""

import errno
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxrl_lm import storage
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder, read_jsonl
from jaxrl_lm.training.errors import DiskFullError, Interrupted, TrainingDivergedError
from jaxrl_lm.training.run import train_stage
from tests.training.counting_trainer import Config, Trainer, kill_at


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(out=str(tmp_path / "run"))


@pytest.fixture
def folder(config: Config) -> RunFolder:
    return RunFolder(Path(config.out))


def begin(config: Config) -> RunFolder:
    """A run that was killed before its first checkpoint."""
    folder = RunFolder.create(Path(config.out), config.saved())
    storage.append_jsonl(folder.samples_file, [{"step": 0, "phase": "before"}])
    (folder.checkpoints_folder / "0.orbax-checkpoint-tmp").mkdir(parents=True)
    return folder


def test_a_signal_in_the_last_update_stops_the_run_which_then_has_nothing_left_to_do(config, folder):
    trainer = Trainer(lambda num_done: num_done == 2 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped after update 3 of 3, which is saved") as caught:
        trainer(config)
    assert caught.value.signal_number == signal.SIGTERM
    assert trainer.finished == 0
    resumed = Trainer()
    resumed(replace(config, resume=True))
    assert resumed.made == []
    assert (folder.path / "count").read_text() == "3"


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(config, resume, capsys):
    folder = begin(config)
    Trainer()(replace(config, resume=resume))
    assert (folder.path / "count").read_text() == "3"
    assert len(read_jsonl(folder.samples_file)) == 1
    assert not list(folder.checkpoints_folder.glob("*tmp*"))
    assert "stopped before its first checkpoint: starting from scratch" in capsys.readouterr().err


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_of_an_older_version_that_was_killed_before_its_first_checkpoint_starts_again(config, resume):
    saved = config.saved()
    del saved["profile_updates"]  # as if the option were newer than the run
    folder = RunFolder.create(Path(config.out), saved)
    Trainer()(replace(config, resume=resume))
    assert (folder.path / "count").read_text() == "3"


@pytest.mark.parametrize("saved", [{"profile_updates": 0}, {"out": "x", "seed": 0, "lr": 1}])
def test_a_folder_of_another_program_is_left_alone(config, saved):
    folder = RunFolder.create(Path(config.out), saved)
    with pytest.raises(InputError, match="exists; choose another folder"):
        Trainer()(config)
    assert folder.read_config() == saved


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_was_killed_while_its_folder_was_made_starts_again(config, folder, resume):
    folder.path.mkdir()
    (folder.path / ".config.yaml.17.tmp").write_text("half")
    Trainer()(replace(config, resume=resume))
    assert (folder.path / "count").read_text() == "3"


def test_what_is_left_of_a_checkpoint_whose_deletion_was_killed_is_resumed(config, folder):
    config = replace(config, save_every=1, keep_checkpoints=1)
    with pytest.raises(KeyboardInterrupt):
        Trainer(kill_at(2))(config)
    (folder.checkpoints_folder / "1" / "description").mkdir(parents=True)
    Trainer()(replace(config, num_updates=2, resume=True))
    assert [path.name for path in folder.checkpoints_folder.iterdir()] == ["2"]


@pytest.mark.parametrize("killed_at", [None, 2, 3, 4, 5])
def test_the_best_checkpoint_is_kept_also_over_a_kill(config, folder, killed_at):
    """Evaluated after updates 2, 3 and 4, of which the second is the best and is saved because it is."""
    config = replace(config, num_updates=6, save_every=5, keep_checkpoints=1)
    returns = {
        1: storage.Score(0.5),
        2: storage.Score(0.7),
        3: storage.Score(0.6),
    }  # by the loss, which is the number of updates before
    fields = {"score": lambda metrics: returns.get(metrics["loss/total"])}
    if killed_at is not None:
        with pytest.raises(KeyboardInterrupt):
            Trainer(kill_at(killed_at), **fields)(config)
    Trainer(**fields)(replace(config, resume=killed_at is not None))
    assert {path.name for path in folder.checkpoints_folder.iterdir()} == {"3", "6"}
    with storage.Checkpoints(folder.checkpoints_folder) as checkpoints:
        assert checkpoints.restore({"count": jnp.zeros(())}, "best")[0] == 3


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt"])
@pytest.mark.parametrize("resume", [True, False])
def test_files_of_somebody_else_are_left_alone(config, folder, name, resume):
    folder.path.mkdir()
    (folder.path / name).write_text("size: 1")
    (folder.path / ".mine.17.tmp").write_text("mine")
    with pytest.raises(InputError):
        Trainer()(replace(config, resume=resume))
    assert len(list(folder.path.iterdir())) == 2


def test_a_finished_run_whose_checkpoints_were_deleted_is_left_alone(config, folder):
    Trainer()(config)
    for checkpoint in folder.checkpoints_folder.iterdir():
        checkpoint.rename(folder.path.parent / f"kept-{checkpoint.name}")
    with pytest.raises(InputError, match="exists"):
        Trainer()(config)
    assert folder.metrics_file.exists()


def test_what_a_kill_left_half_written_is_swept_on_resuming(config, folder):
    with pytest.raises(KeyboardInterrupt):
        Trainer(kill_at(2))(replace(config, save_every=1))
    leftovers = [
        folder.path / ".config.yaml.17.tmp",
        folder.plots_folder / ".loss.png.3.tmp",
        folder.path / ".model.x1_y" / "model" / "model.safetensors",
        folder.path / ".value_model.ab" / "config.json",
        folder.checkpoints_folder / "2.orbax-checkpoint-tmp" / "arrays",
    ]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    mine = folder.path / ".notes"
    mine.write_text("mine")
    resumed = Trainer()
    resumed(replace(config, resume=True, save_every=1))
    assert resumed.made == [2]
    assert not any(path.exists() for path in leftovers)
    assert not list(folder.path.glob(".*model.*"))
    assert mine.exists()


@pytest.mark.parametrize(
    ("is_annealed", "remedy"), [(False, "a higher --num-updates with --resume"), (True, "start another run")]
)
def test_resuming_a_run_that_has_ended_says_so_and_how_to_continue(config, folder, capsys, is_annealed, remedy):
    config = replace(config, is_annealed=is_annealed)
    Trainer()(config)
    capsys.readouterr()
    again = Trainer()
    assert again(replace(config, resume=True)) == folder
    assert (again.made, again.finished) == ([], 0)
    said = capsys.readouterr().err
    assert "this run has ended" in said
    assert remedy in said


def test_a_run_that_has_ended_can_be_made_longer_but_not_shorter(config, folder):
    Trainer()(config)
    longer = Trainer()
    longer(replace(config, resume=True, num_updates=5))
    assert longer.made == [3, 4]
    assert (folder.path / "count").read_text() == "5"
    with pytest.raises(InputError, match="num_updates=4: the run has made 5 already"):
        Trainer()(replace(config, resume=True, num_updates=4))
    with pytest.raises(InputError, match="is_annealed: False in the run, True now"):
        Trainer()(replace(config, resume=True, num_updates=6, is_annealed=True))


def full_disk(how: str) -> Exception:
    """The disk is full, as Python says it and as orbax wraps it."""
    if how == "python":
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return ValueError("Error writing 'state': INTERNAL: [Errno 28] No space left on device (fwrite)")


@pytest.mark.parametrize("how", ["python", "orbax"])
@pytest.mark.parametrize("place", ["metrics", "checkpoint", "finish"])
def test_a_full_disk_is_one_error_that_names_the_checkpoint_and_resuming_repeats_nothing(
    config, folder, monkeypatch, place, how
):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise full_disk(how)

    config = replace(config, save_every=1)
    with monkeypatch.context() as patch:
        at_update = kill_at(99)
        if place == "finish":
            patch.setattr(Trainer, "finish", fail)
        else:
            owner = storage.MetricsWriter if place == "metrics" else storage.Checkpoints
            name = "write" if place == "metrics" else "save"
            at_update = lambda num_done: num_done == 1 and patch.setattr(owner, name, fail)  # noqa: E731
        with pytest.raises(DiskFullError) as caught:
            Trainer(at_update)(config)
    saved = 3 if place == "finish" else 1
    assert f"continues from {folder.checkpoints_folder / str(saved)}" in str(caught.value)
    assert "make room" in str(caught.value)
    resumed = Trainer()
    resumed(replace(config, resume=True))
    assert resumed.made == list(range(saved, 3))


def test_a_run_folder_may_be_moved(config, folder, tmp_path):
    Trainer()(config)
    moved = tmp_path / "moved"
    folder.path.rename(moved)
    longer = Trainer()
    longer(replace(config, out=str(moved), num_updates=5, resume=True))
    assert longer.made == [3, 4]
    assert RunFolder(moved).read_config()["out"] == str(moved)


def test_a_run_from_before_an_option_existed_had_its_default(config, folder):
    Trainer()(config)
    older = "".join(line for line in folder.config_file.read_text().splitlines(keepends=True) if "size" not in line)
    folder.config_file.write_text(older)
    with pytest.raises(InputError, match="size: 1 in the run, 2 now"):
        Trainer()(replace(config, size=2, num_updates=4, resume=True))
    longer = Trainer()
    longer(replace(config, num_updates=4, resume=True))
    assert longer.made == [3]
    assert folder.read_config()["size"] == 1


def test_a_disk_that_is_full_before_the_first_checkpoint_lets_the_same_command_start_again(config, monkeypatch):
    def fail(*args: Any) -> None:
        raise full_disk("python")

    with monkeypatch.context() as patch:
        patch.setattr(storage.Checkpoints, "save", fail)
        with pytest.raises(DiskFullError, match="make room, then the same command starts again"):
            Trainer()(config)
    Trainer()(config)


def test_a_disk_that_is_full_before_any_folder_is_made_is_the_same_error(config, tmp_path, monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise full_disk("python")

    config = replace(config, out=str(tmp_path / "runs" / "of" / "today"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", fail)
        with pytest.raises(DiskFullError, match="make room, then the same command starts again"):
            Trainer()(config)
    Trainer()(config)


def test_a_reward_that_stays_the_same_is_warned_of_once(config, caplog):
    def update(state: Any, num_done: int) -> tuple[Any, dict[str, float]]:
        return state, {"reward/mean": 0.5, "reward/std": 1.0 if num_done == 3 else 0.0}

    trainer = Trainer()
    trainer.update = update
    trainer(replace(config, num_updates=8))
    assert not caplog.records  # 3 in a row, one that differs, 4 in a row
    trainer(replace(config, num_updates=20, resume=True))
    [record] = caplog.records
    assert "in each of the last 5 updates all completions had the same reward (now 0.5)" in record.getMessage()


def test_idle_devices_are_named(config, caplog, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with caplog.at_level(logging.WARNING):
        Trainer()(config)
    assert "training uses 1 of 8 devices" in caplog.text


def test_the_wait_for_the_compiler_is_announced_and_units_are_counted(config, capsys):
    Trainer(unit="environment steps", units_per_update=100)(config)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("compiling; the first 100 environment steps will take longer")
    assert said[1].startswith("first 100 environment steps done after")
    assert said[-1].startswith("environment steps 300/300")


def test_messages_count_what_the_run_counts(config, folder):
    """An update of a run in an environment is a chunk of updates."""
    steps = {"unit": "steps", "units_per_update": 1024}
    stopped = Trainer(lambda num_done: num_done == 1 and os.kill(os.getpid(), signal.SIGTERM), **steps)
    with pytest.raises(Interrupted, match="stopped after step 2,048 of 3,072, which is saved"):
        stopped(config)
    diverged = Trainer(**steps)
    diverged.update = lambda state, num_done: (state, {"loss/total": float("nan")})
    with pytest.raises(TrainingDivergedError, match=r"^step 3,072: loss/total=nan; the last good checkpoint is"):
        diverged(replace(config, resume=True))


class TestStages:
    """A run that is one of several: begun, gone on with, or taken as it is."""

    def test_one_that_has_ended_is_taken_as_it_is_without_a_word(self, config, capsys):
        train_stage(Trainer(), config)
        capsys.readouterr()
        again = Trainer()
        assert train_stage(again, replace(config, save_every=5)).path == Path(config.out)
        assert again.made == []
        assert capsys.readouterr().err == ""

    def test_one_that_has_ended_with_other_settings_is_refused(self, config):
        train_stage(Trainer(), config)
        with pytest.raises(InputError, match="size: 1 in the run, 2 now"):
            train_stage(Trainer(), replace(config, size=2))

    def test_one_that_has_ended_can_be_made_longer(self, config):
        train_stage(Trainer(), config)
        longer = Trainer()
        train_stage(longer, replace(config, num_updates=5))
        assert longer.made == [3, 4]

    def test_a_report_alone_does_not_make_one_ended(self, config, folder):
        with pytest.raises(KeyboardInterrupt):
            Trainer(kill_at(2))(replace(config, save_every=1))
        folder.report_file.write_text("of a run that was interrupted")
        resumed = Trainer()
        train_stage(resumed, replace(config, save_every=1))
        assert resumed.made == [2]

    def test_one_without_a_whole_checkpoint_starts_again(self, config):
        begin(config)
        trainer = Trainer()
        train_stage(trainer, config)
        assert trainer.made == [0, 1, 2]

    def test_one_of_other_settings_is_refused_and_left_alone(self, config):
        folder = begin(config)
        with pytest.raises(InputError, match="size: 1 in the run, 2 now"):
            train_stage(Trainer(), replace(config, size=2))
        assert folder.config_file.exists()
