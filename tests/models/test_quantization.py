"""Quantised checkpoints: float8 is dequantised as transformers does it, everything else is refused by name."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained, save_pretrained
from jaxrl_lm.models.quantization import dequantise
from tests.models import tiny

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 8]}
PROJECTION = "model.layers.0.mlp.up_proj.weight"  # [40, 32]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    tiny.torch_model("qwen3").save_pretrained(folder)
    return folder


@pytest.fixture
def changed(plain, tmp_path):
    """A copy with other tensors, some left out, and a `quantization_config`."""

    def write(added, quantization=None, without=()):
        tensors = load_file(plain / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if name not in without}
        save_file(kept | added, tmp_path / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((plain / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
        return tmp_path

    return write


def projections(plain):
    tensors = load_file(plain / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.endswith("_proj.weight")}


def quantise(weight, rows, columns):
    """Blocks of [rows, columns] with the largest entry at 448, float8's largest number."""
    blocks = weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    return (blocks / scale).reshape(weight.shape).to(torch.float8_e4m3fn), scale[:, 0, :, 0]


@pytest.mark.parametrize("block", ["blocks", "tensor"])
def test_float8_model_equals_that_of_hugging_face(plain, changed, block, tmp_path):
    added = {}
    for name, weight in projections(plain).items():
        rows, columns = (8, 8) if block == "blocks" else weight.shape
        added[name], scale = quantise(weight, rows, columns)
        added[f"{name}_scale_inv"] = scale if block == "blocks" else scale.reshape(())
    quantization = FP8 | {"weight_block_size": [8, 8] if block == "blocks" else None}
    folder = changed(added, quantization)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    ids, mask = tiny.padded_batch()
    expected = tiny.torch_logits(theirs, ids, mask)
    model, params = from_pretrained(folder)
    actual = tiny.forward(model, params, ids, mask).logits
    np.testing.assert_allclose(np.asarray(actual)[mask == 1], expected[mask == 1], rtol=0, atol=1e-4)
    assert np.max(np.abs(expected - tiny.torch_logits(tiny.torch_model("qwen3"), ids, mask))[mask == 1]) > 1e-2
    save_pretrained(tmp_path / "saved", model, params)  # as an ordinary model
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again, info = tiny.torch_load(AutoModelForCausalLM, tmp_path / "saved")
    assert not info["unexpected_keys"]
    np.testing.assert_allclose(tiny.torch_logits(again, ids, mask)[mask == 1], expected[mask == 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize(
    ("scale", "block_size", "expected"),
    [
        (np.array(2.0), None, np.full((3, 4), 2.0)),
        (np.array([2.0]), None, np.full((3, 4), 2.0)),
        (np.array([[1.0], [2.0], [3.0]]), None, np.repeat([[1.0], [2.0], [3.0]], 4, 1)),  # a scale a row
        (np.array([[1.0, 2.0]]), None, np.array([[1.0, 1, 2, 2]] * 3)),
        # Blocks of [2, 3] over [3, 4]: the last ones are cut off.
        (np.array([[1.0, 2.0], [3.0, 4.0]]), [2, 3], np.array([[1.0, 1, 1, 2], [1, 1, 1, 2], [3, 3, 3, 4]])),
    ],
)
def test_scales_worked_by_hand(tmp_path, kind, scale, block_size, expected):
    weight = np.array([[1, -2, 0.5, 4]] * 3)
    tensors = {
        "a.weight": weight.astype(kind),
        "a.weight_scale": scale.astype(np.float32),
        "a.input_scale": np.ones(1, np.float32),
        "b.weight": np.ones(2, np.float32),
    }
    result = dequantise(tensors, {"weight_block_size": block_size}, tmp_path)
    assert result.keys() == {"a.weight", "b.weight"}
    np.testing.assert_array_equal(result["a.weight"], weight * expected)
    assert result["a.weight"].dtype == np.float32


@pytest.mark.parametrize(
    ("scale", "block_size"),
    [
        (np.ones((2, 2), np.float32), None),  # 3 rows are not two blocks
        (np.ones((2, 2), np.float32), [1, 2]),
        (np.ones(3, np.float32), None),
        (np.ones((3, 1), np.uint8), None),  # exponents
    ],
)
def test_scale_that_does_not_fit_is_refused(tmp_path, scale, block_size):
    tensors = {"a.weight": np.ones((3, 4), ml_dtypes.float8_e4m3fn), "a.weight_scale_inv": scale}
    with pytest.raises(InputError, match=r"a\.weight_scale_inv .* is not a scale for a\.weight \[3, 4\].*dequantise"):
        dequantise(tensors, {"weight_block_size": block_size}, tmp_path)


def test_float8_without_a_scale_is_refused(changed):
    folder = changed({PROJECTION: torch.ones(40, 32).to(torch.float8_e4m3fn)}, FP8)
    with pytest.raises(InputError, match=rf"{PROJECTION} is float8_e4m3fn without a weight_scale.*dequantise"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),  # as older files have it
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized", "transform_config": {"R1": {}}},
            "compressed-tensors",
        ),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ("int8", "int8"),
    ],
)
def test_other_methods_are_refused_by_name_before_weights_are_read(changed, quantization, named):
    folder = changed({}, quantization)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=rf"quantization_config: .*'{named}'.*dequantise"):
        from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_weights_that_are_integers_are_refused(changed, dtype):
    folder = changed({PROJECTION: torch.ones(40, 32).to(dtype)})
    with pytest.raises(InputError, match=rf"{PROJECTION} has dtype (u?int\d+|bool), not floating point.*dequantise"):
        from_pretrained(folder)


def test_packed_integers_under_another_name_are_refused_as_quantised(changed):
    packed = {PROJECTION.replace("weight", "qweight"): torch.ones(4, 40, dtype=torch.int32)}
    with pytest.raises(InputError, match=r"up_proj\.qweight has dtype int32"):
        from_pretrained(changed(packed, without=[PROJECTION]))
