"""The mesh from its settings, and what it does not divide; losses on meshes equal those of one device."""

import json
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxrl_lm.distributed import MeshConfig
from jaxrl_lm.distributed.mesh import mesh_shape
from jaxrl_lm.distributed.sharding import check_divides, constrain, spec_of
from jaxrl_lm.errors import InputError


def mesh(**sizes: int) -> AbstractMesh:
    shape = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    return AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(tensor=2), (1, 4, 2)),
        (MeshConfig(data=0, fsdp=2), (4, 2, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (MeshConfig(data=2, fsdp=1, tensor=0), (2, 1, 4)),
    ],
)
def test_one_axis_takes_the_devices_that_the_others_leave(config, expected):
    assert tuple(mesh_shape(config, 8).values()) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=3), r"mesh.fsdp=3.*must be the number of devices, 8; each axis can be 1 or 2 or 4 or 8"),
        (MeshConfig(tensor=3), r"mesh.tensor=3.*must be the number of devices, 8"),
        (MeshConfig(data=2, fsdp=2), r"mesh.data=2, mesh.fsdp=2.*must be the number of devices, 8"),
        (MeshConfig(data=0), r"only one axis can be 0"),
    ],
)
def test_a_mesh_that_does_not_use_all_devices_names_what_would(config, message):
    with pytest.raises(InputError, match=message):
        mesh_shape(config, 8)


def test_negative_sizes_are_refused():
    with pytest.raises(InputError, match=r"mesh\.tensor=-1"):
        MeshConfig(tensor=-1)


def test_what_a_mesh_does_not_divide_is_named_with_what_would_do():
    sizes = {"num_key_value_heads": (3, "kv_heads"), "vocab_size": (50257, "vocab")}
    check_divides(sizes, mesh(fsdp=2))
    with pytest.raises(InputError, match=r"mesh.tensor=2 does not divide num_key_value_heads=3; choose 1 for it"):
        check_divides(sizes, mesh(tensor=2))
    with pytest.raises(InputError, match=r"mesh.tensor=3 does not divide vocab_size=50257; choose 1 for it"):
        check_divides(sizes, mesh(tensor=3))
    with pytest.raises(InputError, match=r"mesh.fsdp=8 does not divide hidden_size=36; choose 1, 2, 3, 4 or 6 for it"):
        check_divides({"hidden_size": (36, "embed")}, mesh(fsdp=8))


def test_axes_of_the_table_become_axes_of_the_mesh():
    assert spec_of(("vocab", "embed", None, "layers")) == PartitionSpec(("tensor",), ("fsdp",), None, None)


def test_without_a_mesh_nothing_is_constrained():
    x = jax.numpy.ones((3, 2))
    assert constrain(x, "batch", None) is x


EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.mark.parametrize("names", [("sft", "reward-model", "dpo"), ("ppo", "rloo", "grpo")], ids=" ".join)
def test_losses_and_parameters_on_meshes_equal_those_of_one_device(names):
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.mesh_losses", *names],
        env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {EIGHT}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])
    assert set(reports) == set(names)
    for name, report in reports.items():
        for mesh_name, found in report.items():
            assert found["metrics"] == {}, (name, mesh_name)
            assert found["params"] < 1e-5, (name, mesh_name)
            assert found["parts"] == {"data": 1, "fsdp": 8, "fsdp and tensor": 8, "all": 4}[mesh_name], (
                name,
                mesh_name,
            )
    assert "Involuntary full rematerialization" not in done.stderr
