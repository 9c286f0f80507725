"""CI needs a browser and PostgreSQL: without them tests would be skipped unnoticed."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.feedback.conftest import skip_without

CI = Path(__file__).parents[2] / ".ci" / "run"


@pytest.mark.parametrize("missing", [None, "chromium", "initdb"])
def test_ci_fails_with_a_clear_line_where_a_program_is_missing(tmp_path: Path, missing: str | None) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "id", "grep", "uname", "cksum", "cut", "find"):
        found = shutil.which(name)
        assert found is not None, name
        (programs / name).symlink_to(found)
    for name in {"make", "chromium", "initdb"} - {missing}:
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "clone" / ".ci").mkdir(parents=True)
    shutil.copy(CI, tmp_path / "clone" / ".ci" / "run")
    (tmp_path / "model.safetensors").touch()
    folders = ("JAXRL_LM_SMOLLM2", "JAXRL_LM_MINILM", "JAX_COMPILATION_CACHE_DIR", "JAXRL_LM_POSTGRESQL")
    environment = {**os.environ, **dict.fromkeys(folders, str(tmp_path)), "PATH": str(programs)}
    command = ["/bin/bash", str(tmp_path / "clone" / ".ci" / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if missing is None:
        assert (ended.returncode, ended.stdout) == (0, "make install-test\nmake test\n")
    else:
        assert (ended.returncode, ended.stdout) == (1, "")
        assert f"{missing} is" in ended.stderr


@pytest.mark.parametrize(("required", "outcome"), [("chromium,postgresql", pytest.fail), ("chromium", pytest.skip)])
def test_what_ci_requires_is_not_skipped(
    required: str, outcome: Callable[..., NoReturn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXRL_LM_REQUIRE", required)
    with pytest.raises(outcome.Exception, match="there is none"):
        skip_without("postgresql", "there is none")


@pytest.mark.parametrize("failing", [None, "ruff", "pyright", "pytest"])
def test_make_test_fails_if_a_linter_or_a_test_does(tmp_path: Path, failing: str | None) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "lint-imports", "pyright", "pytest"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\nexit {int(name == failing)}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name in (".installed-test", ".installed"):
        (tmp_path / name).touch()
    command = ["make", "-C", str(CI.parents[1]), f"VENV={tmp_path}", "test"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) == (failing is None), ended.stderr
