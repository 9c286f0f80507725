"""Find and remove what a kill or a full disk leaves behind in a run folder."""

import errno
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage.run_folder import RunFolder, is_staged

_STAGED_MODEL = re.compile(r"\.(value_)?model\.\w+")  # from `models.save_pretrained`
_STAGED_CHECKPOINT = ".orbax-checkpoint-tmp"
_WRITTEN_BEFORE_CHECKPOINTS = {"config.yaml", "samples.jsonl", "checkpoints"}
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
_FULL_DISK_WORDS = ("no space left on device", "disk quota exceeded")


def is_unstarted(folder: RunFolder, settings: Iterable[str], *, newer: Iterable[str] = ()) -> bool:
    """Whether a folder is empty, or contains a run that stopped before its first checkpoint.

    Args:
        folder: the folder; a missing one is not "unstarted".
        settings: names of the settings in the run's config.yaml; a file with others belongs to another program.
        newer: those that a run of an older version may lack, because they have a default.
    """
    if not folder.path.is_dir():
        return False
    names = {entry.name for entry in folder.path.iterdir() if not is_staged(entry)}
    if not names:
        return True
    if "config.yaml" not in names or not names <= _WRITTEN_BEFORE_CHECKPOINTS or folder.newest_checkpoint():
        return False
    try:
        return set(settings) - set(newer) <= folder.read_config().keys() <= set(settings)
    except InputError:
        return False


def empty_folder(folder: RunFolder) -> None:
    """Delete an unstarted run's files, config.yaml last, so that a kill in between leaves an unstarted run."""
    for entry in sorted(folder.path.iterdir(), key=lambda entry: entry == folder.config_file):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def sweep_leftovers(folder: RunFolder) -> list[Path]:
    """Delete files and folders left half-written by a kill; returns the deleted paths."""
    found = [path for path in folder.path.rglob(".*.tmp") if is_staged(path)]
    found += [path for path in folder.path.iterdir() if _STAGED_MODEL.fullmatch(path.name)]
    if folder.checkpoints_folder.is_dir():
        found += [path for path in folder.checkpoints_folder.iterdir() if _STAGED_CHECKPOINT in path.name]
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return found


def is_full_disk(error: BaseException) -> bool:
    """Whether the error, or one of its causes, is a full disk."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in _FULL_DISK:
            return True
        if any(words in str(current).lower() for words in _FULL_DISK_WORDS):
            return True
        current = current.__cause__ or current.__context__
    return False
