"""Imports stay light: a user of one module does not wait for the packages of the others."""

import subprocess
import sys

import pytest

HEAVY = ("transformers", "torch", "orbax", "matplotlib", "tensorboardX", "pandas", "datasets", "gymnasium", "gymnax")


@pytest.mark.parametrize(
    "module", ["jaxrl_lm.models", "jaxrl_lm.data", "jaxrl_lm.rollouts", "jaxrl_lm.rewards", "jaxrl_lm.storage"]
)
def test_packages_import_nothing_before_it_is_used(module):
    assert _loaded_by(f"import {module}") == set()


@pytest.mark.parametrize("module", ["jaxrl_lm.algorithms.tabular", "jaxrl_lm.algorithms.ppo", "jaxrl_lm.core.returns"])
def test_an_algorithm_imports_little_more_than_jax(module):
    assert _loaded_by(f"import {module}") <= {"jax", "flax"}
    # The least of several, since other processes disturb each.
    assert min(_share_of_jax(module) for _ in range(3)) < 1.3


def _share_of_jax(module: str) -> float:
    """How long a module takes to import, as a multiple of what jax takes of it."""
    command = [sys.executable, "-X", "importtime", "-c", f"import jax, {module}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    rows = [line.split("|") for line in lines if line.startswith("import time:") and "cumulative" not in line]
    outermost = {row[2].strip(): int(row[1]) for row in rows if not row[2].startswith("  ")}
    ours = sum(value for name, value in outermost.items() if name.startswith("jaxrl_lm"))
    return 1 + ours / outermost["jax"]


def _loaded_by(statement: str) -> set[str]:
    """Which heavy packages a statement loads in a fresh interpreter."""
    code = f"import sys; {statement}; print(*(name for name in {HEAVY} + ('jax', 'flax') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
