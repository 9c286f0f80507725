"""What every trainer of language models does with its run folder: refuse early, make or reopen, samples, report."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jaxrl_lm import storage
from jaxrl_lm.errors import InputError

Samples = list[dict[str, Any]]


# What may differ between a run and its resumption without changing any number.
EXEMPT = frozenset({"save_every", "keep_checkpoints", "wandb_project"})


def check_out(config: Any) -> None:
    """Refuse what can be refused before minutes are spent on loading.

    Args:
        config: dataclass of the run, with `out`, `resume` and `wandb_project`.

    Raises:
        InputError: there is no run to resume, or `out` is taken, or wandb is not installed.
    """
    out = Path(config.out)
    storage.check_wandb(config.wandb_project)
    if config.resume:
        storage.RunFolder(out).read_config()
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={config.out!r} exists; choose another folder, or --resume to go on with that run")


def open_run(config: Any, before: Callable[[], Samples], *, is_extensible: bool) -> storage.RunFolder:
    """The folder of a new run with its samples from before training, or that of the run to resume.

    Args:
        config: dataclass of the run; all but `resume`, which is no setting of the run, goes into config.yaml.
        before: makes the samples; called for a new run only, before its folder is made.
        is_extensible: whether `num_updates` may differ on resuming.

    Raises:
        InputError: the run was started with other values.
    """
    settings = _settings(config)
    if config.resume:
        exempt = EXEMPT | {"num_updates"} if is_extensible else EXEMPT
        return storage.RunFolder.open(Path(config.out), settings, ignore=exempt)
    samples = before()
    folder = storage.RunFolder.create(Path(config.out), settings)
    storage.append_jsonl(folder.samples_file, samples)
    return folder


def run_stage(train: Callable[[Any], storage.RunFolder], config: Any) -> storage.RunFolder:
    """A run that is one of several: begun, gone on with where it was interrupted, or taken as it is if it has ended.

    Args:
        train: makes a run of these settings.
        config: dataclass of the run; its `resume` is not looked at.

    Raises:
        InputError: the folder holds a run of other settings; beside this, what `train` raises.
    """
    folder = storage.RunFolder(Path(config.out))
    is_begun = folder.config_file.exists()
    if is_begun:
        storage.RunFolder.open(folder.path, _settings(config), ignore=EXEMPT)
        if folder.ended_file.exists():
            return folder
    if folder.newest_checkpoint() is None:
        # Stopped before its first checkpoint, or while its folder was made or taken away: nothing to go on with.
        is_begun = False
        _take_away(folder)
    train(replace(config, resume=is_begun))
    storage.write_atomically(folder.ended_file, "")
    return folder


def _take_away(folder: storage.RunFolder) -> None:
    """Delete what a run left that was stopped before its first checkpoint; a kill on the way leaves no half of it."""
    aside = folder.path.with_name(f".{folder.path.name}.stopped")
    if aside.exists():
        shutil.rmtree(aside)
    for part in folder.path.glob(f".{folder.config_file.name}.*.tmp"):
        part.unlink()
    if folder.config_file.exists():
        folder.path.rename(aside)
        shutil.rmtree(aside)


def write_samples_after(folder: storage.RunFolder, after: Samples) -> None:
    """Put the samples from after training behind the others.

    Those that a shorter run has left, which this one went on with, are not "after" any more.
    """
    samples = [sample for sample in storage.read_jsonl(folder.samples_file) if sample["phase"] != "after"] + after
    storage.write_atomically(folder.samples_file, "".join(json.dumps(sample) + "\n" for sample in samples))


def _settings(config: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name != "resume"}
