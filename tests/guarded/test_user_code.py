"""Users' Python files are imported as they are now."""

import os
from pathlib import Path

import pytest

from jaxrl_lm import guarded


def test_an_edit_within_the_same_second_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "my rewards.py"
    for number in (1, 2):
        file.write_text(f"VALUE = {number}\n")
        os.utime(file, (1e9, 1e9))
        assert number == guarded.import_file(file).VALUE


def test_errors_of_the_file_pass_through_and_leave_no_module(tmp_path: Path) -> None:
    import sys

    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        guarded.import_file(file)
    assert not any(name.endswith("broken.py") for name in sys.modules)
