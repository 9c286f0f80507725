"""Stages of a chain: begun, gone on with, or taken as they are."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jaxrl_lm import storage
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.run_files import run_stage


@dataclass(frozen=True, kw_only=True)
class Config:
    out: str
    size: int = 1
    save_every: int = 10
    resume: bool = False


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(out=str(tmp_path / "stage"))


def begin(config: Config) -> storage.RunFolder:
    settings = {"out": config.out, "size": config.size, "save_every": config.save_every}
    return storage.RunFolder.create(Path(config.out), settings)


def train_noting(resumed: list[bool]):
    def train(config: Config) -> storage.RunFolder:
        resumed.append(config.resume)
        folder = storage.RunFolder(Path(config.out)) if config.resume else begin(config)
        (folder.checkpoints_folder / "3").mkdir(parents=True, exist_ok=True)
        return folder

    return train


def test_a_stage_that_has_ended_is_taken_as_it_is_though_it_would_be_saved_otherwise(config):
    resumed: list[bool] = []
    run_stage(train_noting(resumed), config)
    assert run_stage(train_noting(resumed), replace(config, save_every=5)).path == Path(config.out)
    assert resumed == [False]


def test_a_report_alone_does_not_make_a_stage_ended(config):
    folder = begin(config)
    (folder.checkpoints_folder / "2").mkdir(parents=True)
    folder.report_file.write_text("of a run that was interrupted")
    resumed: list[bool] = []
    run_stage(train_noting(resumed), config)
    assert resumed == [True]


def test_a_stage_without_a_whole_checkpoint_begins_anew(config):
    folder = begin(config)
    (folder.checkpoints_folder / "0.orbax-checkpoint-tmp").mkdir(parents=True)
    resumed: list[bool] = []
    run_stage(train_noting(resumed), config)
    assert resumed == [False]
    assert not list(folder.checkpoints_folder.glob("*tmp"))


def test_a_stage_of_other_settings_is_refused_and_left_alone(config):
    folder = begin(config)
    with pytest.raises(InputError, match="size: 1 in the run, 2 now"):
        run_stage(train_noting([]), replace(config, size=2))
    assert folder.config_file.exists()


def test_a_stage_that_was_killed_while_its_folder_was_made_or_taken_away_begins_anew(config):
    folder = storage.RunFolder(Path(config.out))
    folder.path.mkdir()
    (folder.path / ".config.yaml.17.tmp").write_text("half")
    (folder.path.parent / ".stage.stopped" / "checkpoints").mkdir(parents=True)
    resumed: list[bool] = []
    run_stage(train_noting(resumed), config)
    assert resumed == [False]
    assert [each.name for each in folder.path.parent.iterdir()] == ["stage"]
