"""CI needs a browser: without one the page's tests would skip, and nobody would see it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / ".ci" / "run"


@pytest.mark.parametrize("is_there", [False, True])
def test_ci_fails_with_a_clear_line_where_there_is_no_chromium(tmp_path: Path, is_there: bool) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "id", "grep", "uname", "cksum", "cut", "find"):
        found = shutil.which(name)
        assert found is not None, name
        (programs / name).symlink_to(found)
    for name in ("make", *(["chromium"] if is_there else [])):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "clone" / ".ci").mkdir(parents=True)
    shutil.copy(CI, tmp_path / "clone" / ".ci" / "run")
    (tmp_path / "model.safetensors").touch()
    models = {"JAXRL_LM_SMOLLM2": str(tmp_path), "JAXRL_LM_MINILM": str(tmp_path)}
    environment = {**os.environ, **models, "PATH": str(programs), "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    command = ["/bin/bash", str(tmp_path / "clone" / ".ci" / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if is_there:
        assert (ended.returncode, ended.stdout) == (0, "make install-test\nmake test\n")
    else:
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "no chromium on the PATH" in ended.stderr
