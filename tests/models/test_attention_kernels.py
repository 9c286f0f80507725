"""Fused attention: numbers of plain attention, choice by platform, and programs for devices that are not here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jaxrl_lm.core.flops import count_flops
from jaxrl_lm.models import attention, attention_kernels
from jaxrl_lm.models.stack import stack_layers
from tests.models import interpreted, tiny

WIDTH = 300  # three blocks of which the last one is not full


def segments() -> np.ndarray:
    """Rows `[2, WIDTH]`: sequences of 70, 90 and 70 tokens between padding; one of 290, with padding on the right."""
    rows = np.zeros((2, WIDTH), np.int32)
    rows[0, 20:90], rows[0, 90:180], rows[0, 180:250], rows[1, :290] = 1, 2, 1, 3
    return rows


def inputs(num_heads: int, num_kv_heads: int, head_size: int, dtype=jnp.float32):
    """Queries, keys, values and the gradient of the result, which is 0 at padding."""
    rng = np.random.default_rng(0)
    shapes = [(2, WIDTH, num_heads, head_size), *[(2, num_kv_heads, WIDTH, head_size)] * 2]
    qkv = tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    real = (segments() > 0)[:, :, None]
    return qkv, jnp.asarray(np.where(real, rng.normal(size=(2, WIDTH, num_heads * head_size)), 0), dtype)


def with_gradients(qkv, cotangent, visible, softcap=None):
    """The result at tokens, and gradients of queries, keys and values."""

    @jax.jit
    def run(qkv):
        result, vjp = jax.vjp(lambda *qkv: attention.attend(*qkv, visible, 0.3, softcap), *qkv)
        return jnp.where((segments() > 0)[:, :, None], result, 0), *vjp(cotangent)

    return run(qkv)


def bidirectional() -> attention.Visible:
    ids = jnp.asarray(segments())
    mask = (ids[:, :, None] == ids[:, None, :]) & (ids > 0)[:, None, :]
    return attention.Visible(mask=mask, segments=ids, is_causal=False)


def causal(window: int | None = None) -> attention.Visible:
    return attention.visible_keys(jnp.asarray(segments()), None, "auto", (window,))


@pytest.mark.parametrize(
    ("visible", "softcap", "num_kv_heads"),
    [(causal, None, 1), (lambda: causal(window=37), 2.0, 2), (bidirectional, None, 4)],
    ids=["causal, one key head", "window, softcap, two key heads", "bidirectional, all heads"],
)
def test_splash_attention_and_its_gradients_equal_plain_attention(visible, softcap, num_kv_heads):
    args = (*inputs(4, num_kv_heads, 24), visible(), softcap)
    expected = with_gradients(*args)
    with interpreted.splash_attention():
        found = with_gradients(*args)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert np.max(np.abs(other)) > 0.5


def test_each_layer_of_a_scanned_stack_has_its_window_and_packed_rows_their_segments():
    model, params = tiny.random_model("gemma2", max_position_embeddings=256, sliding_window=9, num_key_value_heads=2)
    ids, rows = np.random.default_rng(0).integers(0, 100, (2, 130)), np.repeat([[0, 1, 2, 3, 0]], 26, axis=0).T
    rows = np.stack([rows.reshape(-1), np.ones(130)]).astype(np.int32)
    model, stacked = model.clone(is_scanned=True), stack_layers(params, "layers")

    def hidden():
        run = jax.jit(lambda params: model.apply({"params": params}, ids, segment_ids=rows, method="encode"))
        return np.where((rows > 0)[:, :, None], run(stacked).hidden_states, 0)

    expected = hidden()
    with interpreted.splash_attention():
        found = hidden()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def on(platform: str) -> AbstractMesh:
    device = AbstractDevice(device_kind="", num_cores=1, platform=platform)
    return AbstractMesh((2,), ("data",), abstract_device=device)


@pytest.mark.parametrize(
    ("platform", "capability", "args", "expected"),
    [
        ("tpu", None, (128, 80, jnp.float32, 50.0), "splash"),
        ("tpu", None, (127, 128, jnp.bfloat16, None), None),
        ("cpu", None, (1024, 128, jnp.bfloat16, None), None),
        ("gpu", "8.0", (128, 128, jnp.bfloat16, None), "cudnn"),
        ("gpu", "8.0", (128, 256, jnp.bfloat16, None), None),
        ("gpu", "12.0", (128, 256, jnp.float16, None), "cudnn"),
        ("gpu", "9.0", (128, 128, jnp.float32, None), None),
        ("gpu", "9.0", (128, 100, jnp.bfloat16, None), None),
        ("gpu", "9.0", (128, 128, jnp.bfloat16, 50.0), None),
        ("gpu", "7.5", (128, 128, jnp.bfloat16, None), None),
        ("gpu", "gfx942", (128, 128, jnp.bfloat16, None), None),
    ],
)
def test_the_kernel_follows_from_the_platform_and_what_it_supports(monkeypatch, platform, capability, args, expected):
    version = "rocm 7" if str(capability).startswith("gfx") else "PJRT C API\ncuda 12090"
    device = SimpleNamespace(compute_capability=capability, client=SimpleNamespace(platform_version=version))
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with jax.sharding.use_abstract_mesh(on(platform)):
        assert attention_kernels.choose(*args) == expected


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        (jnp.bfloat16, "bfloat16", "splash"),
        (jnp.bfloat16, "highest", None),
        (jnp.float32, "highest", "splash"),
        (jnp.float32, "high", None),
    ],
)
def test_precisions_that_the_compiler_of_tpus_kernels_refuses_get_plain_attention(dtype, precision, expected):
    with jax.sharding.use_abstract_mesh(on("tpu")), jax.default_matmul_precision(precision):
        assert attention_kernels.choose(128, 64, dtype, None) == expected


def test_on_this_machine_and_where_plain_attention_is_asked_for_no_kernel_is_used(monkeypatch):
    assert attention_kernels.choose(1024, 128, jnp.bfloat16, None) is None
    mask = jnp.ones((1, 4), jnp.int32)
    assert attention.visible_keys(mask, None, "plain").segments is None
    cache = attention.init_cache(num_layers=1, batch=1, size=8, num_kv_heads=1, head_size=2, dtype=jnp.float32)
    assert attention.visible_keys(mask, cache, "auto").segments is None


def test_cudnns_arguments_mean_plain_attention(monkeypatch):
    """By JAX's own implementation of the same function, since cuDNN needs a GPU."""
    args = (*inputs(4, 2, 24), causal(window=37))
    expected = with_gradients(*args)
    original, used = jax.nn.dot_product_attention, []

    def on_a_cpu(*args, implementation, **options):
        used.append(implementation)
        return original(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_a_cpu)
    monkeypatch.setattr(attention_kernels, "choose", lambda *_: "cudnn")
    for one, other in zip(with_gradients(*args), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert used == ["cudnn"]


def test_programs_for_nvidia_gpus_call_cudnn_and_count_the_same_operations(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    qkv, cotangent = inputs(4, 2, 64, jnp.bfloat16)

    def trace():
        return jax.jit(lambda *qkv: with_gradients(qkv, cotangent, causal())).trace(*qkv)

    plain = count_flops(trace().jaxpr)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(attention_kernels, "choose", lambda *_: "cudnn")
    traced = trace()
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert text.count("custom_call @__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
    assert plain == count_flops(traced.jaxpr) == 3 * 2 * 2 * 2 * 4 * WIDTH**2 * 64


COMPILED = """
import json, re
from jaxrl_lm.training.planning.plan import _devices, use_described_devices
from jaxrl_lm.training.planning.slices import find_slice

platform = use_described_devices(4)
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxrl_lm.core.flops import count_flops
from jaxrl_lm.distributed import MeshConfig, make_mesh
from jaxrl_lm.models import attention

def trace_for(name, tensor, kernels):
    mesh = make_mesh(MeshConfig(data=1, tensor=tensor), _devices(find_slice(name), platform))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))

    def run(queries, keys, values, mask):
        visible = attention.visible_keys(mask, None, kernels, (200,))
        result, vjp = jax.vjp(lambda *qkv: attention.attend(*qkv, visible, 0.1, 30.0), queries, keys, values)
        return vjp(result)

    shapes = [((4, 512, 8, 64), "bfloat16"), *[((4, 4, 512, 64), "bfloat16")] * 2, ((4, 512), "int32")]
    with jax.set_mesh(mesh):
        return jax.jit(run).trace(*(jax.ShapeDtypeStruct(*each, sharding=sharding) for each in shapes))

def report(*on):
    traced = trace_for(*on, "auto")
    text = traced.lower().compile().as_text()
    calls = re.findall("%splash_mha_(fwd|dq|dkv)_[a-z_.0-9]* = .*custom-call", text)
    flops = [count_flops(each.jaxpr) for each in (traced, trace_for(*on, "plain"))]
    return {"calls": calls, "pairs": text.count("512,512]"), "gathered": text.count("all-gather("), "flops": flops}

print(json.dumps([report("v5e-4", 2), report("v6e-1", 1)]))
"""


def test_programs_for_tpus_call_the_kernel_on_each_part_of_a_mesh(libtpu):
    path = os.pathsep.join([libtpu, str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for report in json.loads(done.stdout.splitlines()[-1]):
        assert sorted(report["calls"]) == ["dkv", "dq", "fwd"]
        assert report["pairs"] == report["gathered"] == 0  # no logits in memory, nothing sent between devices
        kernel, plain = report["flops"]
        assert kernel == pytest.approx(plain, rel=1e-3)  # the rest: the product of the result and its gradient
