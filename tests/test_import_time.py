"""Imports stay light: a user of one module does not wait for the packages of the others."""

import subprocess
import sys

import pytest

HEAVY = ("transformers", "torch", "orbax", "matplotlib", "tensorboardX", "pandas", "datasets", "gymnasium")


@pytest.mark.parametrize(
    "module", ["jaxrl_lm.models", "jaxrl_lm.data", "jaxrl_lm.rollouts", "jaxrl_lm.rewards", "jaxrl_lm.storage"]
)
def test_packages_import_nothing_before_it_is_used(module):
    assert _loaded_by(f"import {module}") == set()


def _loaded_by(statement: str) -> set[str]:
    """Which heavy packages a statement loads in a fresh interpreter."""
    code = f"import sys; {statement}; print(*(name for name in {HEAVY} + ('jax', 'flax') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
