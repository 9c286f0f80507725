"""Checkpoints that Hugging Face's own Flax classes wrote, against what those classes computed."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.models import from_pretrained, save_pretrained
from jaxrl_lm.models.weights import read_weights
from tests.models import tiny

FOLDERS = ["gpt2", "gpt2_base", "gpt2_bf16", "gpt2_sharded", "llama", "llama_gqa", "mistral"]


@pytest.mark.parametrize("name", FOLDERS)
def test_output_equals_that_of_the_flax_class(shared_data, name):
    folder = shared_data / "hf_flax" / name
    expected = np.load(folder / "expected.npz")
    mask = expected["attention_mask"]
    model, params = from_pretrained(folder)
    output = tiny.forward(model, params, expected["input_ids"], mask)
    actual = output.hidden_states if name == "gpt2_base" else output.logits
    assert actual.shape == expected["output"].shape
    np.testing.assert_allclose(np.asarray(actual)[mask == 1], expected["output"][mask == 1], rtol=0, atol=1e-4)


def test_parameters_take_the_asked_dtype_whatever_the_file_holds(shared_data):
    _, wide = from_pretrained(shared_data / "hf_flax" / "gpt2_bf16")
    _, narrow = from_pretrained(shared_data / "hf_flax" / "gpt2_bf16", param_dtype=jnp.bfloat16)
    weight, same = (tree["backbone"]["h_0"]["attn"]["c_attn"]["weight"] for tree in (wide, narrow))
    assert weight.dtype == jnp.float32
    assert same.dtype == jnp.bfloat16
    np.testing.assert_array_equal(weight, same.astype(jnp.float32))  # the file held bfloat16


@pytest.mark.parametrize("name", ["gpt2_sharded", "llama_gqa"])
def test_we_write_the_files_that_the_flax_class_wrote(shared_data, tmp_path, name):
    folder = shared_data / "hf_flax" / name
    model, params = from_pretrained(folder)
    save_pretrained(tmp_path / "model", model, params, format="flax")
    (ours, kind), (theirs, _) = read_weights(tmp_path / "model"), read_weights(folder)
    assert kind == "flax"
    assert ours.keys() == theirs.keys()
    for tensor in theirs:
        np.testing.assert_array_equal(ours[tensor], theirs[tensor], err_msg=tensor)
