"""Families with layers of their own kind give on a mesh what they give on one device."""

import json
import os
import subprocess
import sys

import pytest

FAMILIES = ("qwen3_moe", "phi", "gpt_neox")


@pytest.fixture(scope="module")
def report():
    """What `mesh_families` prints."""
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.distributed.mesh_families", *FAMILIES]
    done = subprocess.run(command, env={**os.environ, **devices}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_and_gradients_on_a_mesh_are_those_of_one_device(report, name):
    assert report[name]["log_probs"] < 1e-5
    assert report[name]["gradients"] < 1e-4


def test_a_kernel_on_each_part_of_a_mesh_gives_what_plain_attention_gives_on_one_device(report):
    assert max(report["splash"]) < 2e-5


def test_a_batch_is_split_where_the_mesh_divides_it(report):
    assert report["rows"] == {"8": 2, "6": 6}
