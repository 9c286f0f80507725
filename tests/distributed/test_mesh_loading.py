"""Checkpoints are loaded straight to the parts of a mesh: equal to those of one device, and each part is read once."""

import json
import os
import subprocess
import sys

import pytest

VARIANTS = ("llama_grouped_tied", "qwen3_moe", "phi3")  # tied, experts, fused


@pytest.fixture(scope="module")
def reports():
    """What `mesh_loading` prints."""
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.distributed.mesh_loading", *VARIANTS]
    done = subprocess.run(command, env={**os.environ, **devices}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("is_scanned", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_on_a_mesh_are_those_of_one_device_and_are_read_in_parts(reports, name, is_scanned):
    report = reports[name][str(is_scanned)]
    assert report["is_equal"]
    assert report["is_split"]
    assert report["read"] == report["size"]  # each part once, although two devices hold it
    assert report["largest_read"] == report["largest_shard"]
    assert report["largest_shard"] <= report["largest"] / 2
