"""What a kill or a full disk leaves behind in a run folder, and how it is recognised and removed."""

import errno
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage.run_folder import RunFolder, is_staged

_STAGED_MODEL = re.compile(r"\.(value_)?model\.\w+")  # of `models.save_pretrained`
_STAGED_CHECKPOINT = ".orbax-checkpoint-tmp"
_WRITTEN_BEFORE_CHECKPOINTS = {"config.yaml", "samples.jsonl", "checkpoints"}
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
_FULL_DISK_WORDS = ("no space left on device", "disk quota exceeded")


def is_unstarted(folder: RunFolder, settings: Iterable[str]) -> bool:
    """Whether a folder is empty, or a run was stopped in it before its first checkpoint.

    Args:
        folder: it may be missing, which is not "unstarted".
        settings: names of the settings that the run's config.yaml holds; a file with others is somebody else's.
    """
    if not folder.path.is_dir():
        return False
    names = {entry.name for entry in folder.path.iterdir() if not is_staged(entry)}
    if not names:
        return True
    if "config.yaml" not in names or not names <= _WRITTEN_BEFORE_CHECKPOINTS or folder.newest_checkpoint():
        return False
    try:
        return folder.read_config().keys() == set(settings)
    except InputError:
        return False


def empty_folder(folder: RunFolder) -> None:
    """Delete what an unstarted run left; config.yaml last, so that a kill on the way leaves an unstarted run again."""
    for entry in sorted(folder.path.iterdir(), key=lambda entry: entry == folder.config_file):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def sweep_leftovers(folder: RunFolder) -> list[Path]:
    """Delete the files and folders that a kill left half-written; returns what was deleted."""
    found = [path for path in folder.path.rglob(".*.tmp") if is_staged(path)]
    found += [path for path in folder.path.iterdir() if _STAGED_MODEL.fullmatch(path.name)]
    if folder.checkpoints_folder.is_dir():
        found += [path for path in folder.checkpoints_folder.iterdir() if _STAGED_CHECKPOINT in path.name]
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return found


def is_full_disk(error: BaseException) -> bool:
    """Whether a file could not be written for lack of space, by the error or one that it comes from."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in _FULL_DISK:
            return True
        if any(words in str(current).lower() for words in _FULL_DISK_WORDS):
            return True
        current = current.__cause__ or current.__context__
    return False
