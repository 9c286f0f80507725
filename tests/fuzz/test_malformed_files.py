"""Damaged files of every kind: each gives what it holds, or one clear error, soon.

`JAXRL_LM_FUZZ=1000 pytest tests/fuzz` tries a thousand mutations of each file instead of a few.
"""

import os
import random
import time
import zlib

import pytest

from jaxrl_lm.errors import InputError
from tests.fuzz import by_command
from tests.fuzz.by_command import commands
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import make_targets

NUM_MUTATIONS = int(os.environ.get("JAXRL_LM_FUZZ", "6"))
MAX_SECONDS = 20.0


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return make_targets(tmp_path_factory.mktemp("fuzz"))


def attempt(target, content):
    """Read a target with this content in its file; the error where one is clear. Its good content comes back."""
    path = target.folder / target.file
    good = path.read_bytes()
    began = time.monotonic()
    try:
        path.write_bytes(content)
        target.read(path)
    except InputError as error:
        said = str(error)
        assert 10 < len(said) < 20_000, said[:200]
        return said
    finally:
        path.write_bytes(good)
        assert time.monotonic() - began < MAX_SECONDS
    return None


def test_every_good_file_is_read(targets):
    for name, target in targets.items():
        said = attempt(target, (target.folder / target.file).read_bytes())
        assert said is None, (name, said)


def test_every_target_has_a_command_that_reads_it(targets, tmp_path):
    reading = commands(targets, tmp_path / "out")
    for name in ("chain config.yaml", "chain inputs.json", "chain pairs.jsonl"):
        target = targets[name]
        good = (target.folder / target.file).read_bytes()
        assert by_command.attempt(target, good, reading[name], tmp_path / "out")[0] == "exit code 0"
        assert by_command.attempt(target, b"[]", reading[name], tmp_path / "out")[0] == "exit code 2"
    with pytest.raises(AssertionError, match="new kind: 0 commands; add a command that reads it"):
        commands({**targets, "new kind": targets["labels.sqlite"]}, tmp_path / "out")


# What orbax's threads still do when a restore has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_files_are_read_or_refused(targets):
    num_refused = num_tried = 0
    for name, target in targets.items():
        good = (target.folder / target.file).read_bytes()
        for number in range(NUM_MUTATIONS):
            rng = random.Random(zlib.crc32(f"{name} {number}".encode()))
            content = mutate(good, target.file, rng)
            try:
                num_refused += attempt(target, content) is not None
            except BaseException as error:
                error.add_note(f"{name}, mutation {number}: {content[:300]!r}")
                raise
            num_tried += 1
    # Mutations that change nothing that matters are read; were nearly all read or refused, the test would show little.
    assert 0.3 * num_tried < num_refused < 0.95 * num_tried
