"""Imports stay light: a user of one module does not wait for the packages of the others."""

import subprocess
import sys

import pytest

HEAVY = ("transformers", "torch", "orbax", "matplotlib", "tensorboardX", "pandas", "datasets", "gymnasium", "gymnax")


@pytest.mark.parametrize(
    "module",
    [
        "jaxrl_lm.models",
        "jaxrl_lm.data",
        "jaxrl_lm.rollouts",
        "jaxrl_lm.rewards",
        "jaxrl_lm.storage",
        "jaxrl_lm.feedback",
    ],
)
def test_packages_import_nothing_before_it_is_used(module):
    assert _loaded_by(f"import {module}") == set()


@pytest.mark.parametrize("module", ["jaxrl_lm.algorithms.tabular", "jaxrl_lm.algorithms.ppo", "jaxrl_lm.core.returns"])
def test_an_algorithm_imports_little_more_than_jax(module):
    assert _loaded_by(f"import {module}") <= {"jax", "flax"}
    # The least of several, since other processes disturb each.
    assert min(_share_of_jax(module) for _ in range(3)) < 1.3


def test_the_list_of_commands_loads_no_jax():
    code = "from jaxrl_lm.cli.main import run; assert run([]) == run(['train', '--help']) == 0"
    assert _loaded_by(code, also=("tyro", "numpy", "rich", "sqlalchemy", "starlette")) == set()


def test_the_help_of_every_command_loads_nothing_but_its_settings():
    """All in one process: what one of them loaded would show."""
    code = "from jaxrl_lm.cli.main import COMMANDS, run; assert not any(run([*c.split(), '--help']) for c in COMMANDS)"
    assert _loaded_by(code, also=("scipy", "sqlalchemy", "starlette", "tokenizers")) <= {"jax", "flax"}


def _share_of_jax(module: str) -> float:
    """How long a module takes to import, as a multiple of what jax takes of it."""
    command = [sys.executable, "-X", "importtime", "-c", f"import jax, {module}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    rows = [line.split("|") for line in lines if line.startswith("import time:") and "cumulative" not in line]
    outermost = {row[2].strip(): int(row[1]) for row in rows if not row[2].startswith("  ")}
    ours = sum(value for name, value in outermost.items() if name.startswith("jaxrl_lm"))
    return 1 + ours / outermost["jax"]


def _loaded_by(statement: str, also: tuple[str, ...] = ()) -> set[str]:
    """Which heavy packages a statement loads in a fresh interpreter."""
    names = (*HEAVY, "jax", "flax", *also)
    code = f"import sys; {statement}; sys.stderr.write(' '.join(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())
