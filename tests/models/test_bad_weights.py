"""Model folders that are damaged, incomplete or of another model: one clear error each, nothing written."""

import json
import pickle
import shutil

import jax
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import FAMILIES, from_pretrained, save_pretrained, weights
from tests.models import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_llama):
    """Folders of one good model: safetensors and flax, whole and sharded."""
    folders = {}
    for kind in weights.FILE_NAMES:
        for form, max_bytes in [("whole", 10**9), ("sharded", 20_000)]:
            folder = tmp_path_factory.mktemp("models") / f"{kind}_{form}"
            save_pretrained(folder, *tiny_llama, format=kind, max_shard_bytes=max_bytes)
            folders[kind, form] = folder
    return folders


@pytest.fixture
def model_folder(whole, tmp_path):
    """A copy to damage: `model_folder(kind, form)`."""
    return lambda kind="safetensors", form="whole": shutil.copytree(whole[kind, form], tmp_path / "model")


def assert_refused(folder, *words, head=None):
    """Loading fails with an InputError that holds each of `words`, and changes nothing in the folder."""
    before = tiny.files(folder)
    with pytest.raises(InputError) as caught:
        from_pretrained(folder, head=head)
    for word in words:
        assert word in str(caught.value)
    assert tiny.files(folder) == before


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_no_weights(model_folder):
    folder = model_folder()
    (folder / "model.safetensors").unlink()
    assert_refused(folder, str(folder), "model.safetensors", "flax_model.msgpack")


def test_torch_pickle_is_never_read(model_folder):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    folder = model_folder()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert_refused(folder, "no weights found", ".bin", "convert")


@pytest.mark.parametrize("kind", weights.FILE_NAMES)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(model_folder, kind, kept):
    folder = model_folder(kind)
    path = folder / weights.FILE_NAMES[kind]
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert_refused(folder, str(path), "copy or download it again")


@pytest.mark.parametrize("kind", weights.FILE_NAMES)
@given(data=st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_refused(tmp_path_factory, kind, data):
    path = tmp_path_factory.getbasetemp() / f"random_{kind}"
    path.write_bytes(data)
    with pytest.raises(InputError, match=path.name):
        weights.read_file(path, kind)


_SCALARS = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=4) | st.binary(max_size=4)
_EXTENSIONS = st.builds(
    msgpack.ExtType,
    st.integers(0, 5),
    st.binary(max_size=30)
    | st.tuples(
        st.lists(st.integers(-3, 2**40), max_size=3),
        st.sampled_from(["float32", "bfloat16", "O", "S3", "[", "i4,f4", ""]),
        st.binary(max_size=12),
    ).map(msgpack.packb),
)
_KEYS = st.text(max_size=3) | st.binary(max_size=3) | st.just("__msgpack_chunked_array__")
_TREES = st.recursive(
    _SCALARS | _EXTENSIONS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(tree=_TREES)
@settings(max_examples=400, deadline=None)
def test_msgpack_that_holds_other_things_is_refused_or_gives_named_arrays(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "other.msgpack"
    path.write_bytes(msgpack.packb(tree))
    try:
        tensors = weights.read_file(path, "flax")
    except InputError:
        return
    assert tensors
    assert all(isinstance(name, str) and isinstance(x, np.ndarray) for name, x in tensors.items())


@pytest.mark.parametrize("kind", weights.FILE_NAMES)
def test_missing_shard(model_folder, kind):
    folder = model_folder(kind, "sharded")
    shard = sorted(folder.glob("*-00002-of-*"))[0]
    shard.unlink()
    assert_refused(folder, str(shard), "missing", f"{weights.FILE_NAMES[kind]}.index.json", "download")


def test_shards_that_lack_a_tensor_of_the_index(model_folder):
    folder = model_folder("safetensors", "sharded")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost.weight"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    assert_refused(folder, str(index), "model.ghost.weight", "download")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("[" * 900 + "]" * 900, "nested deeper than 100 levels"),
        *[
            (content, "not an index of shards")
            for content in (
                "{}",
                '{"weight_map": []}',
                '{"weight_map": {"a": 1}}',
                '{"weight_map": {"a": null, "b": "x"}}',
                '{"weight_map": {"a": [1]}}',
                '{"weight_map": {"a": "%s"}}' % ("x" * 5000),
                '{"weight_map": {"a": "x\\u0000"}}',
                '{"weight_map": {"a": ""}}',
            )
        ],
    ],
)
def test_index_that_is_no_index(model_folder, content, said):
    folder = model_folder("flax", "sharded")
    index = folder / "flax_model.msgpack.index.json"
    index.write_text(content)
    assert_refused(folder, str(index), said, "download")


def test_shards_outside_the_folder_are_not_read(model_folder, tmp_path):
    folder = model_folder("safetensors", "sharded")
    shard = sorted(folder.glob("*-00001-of-*"))[0]
    shutil.move(shard, tmp_path / shard.name)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard.name, f"../{shard.name}"))
    assert_refused(folder, shard.name, "missing")


@pytest.mark.parametrize("kind", weights.FILE_NAMES)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 102}, ["embed_tokens", "(101, 32)", "(102, 32)"]),
        ({"intermediate_size": 48}, ["mlp", "40", "48"]),
        ({"num_key_value_heads": 4}, ["k_proj", "(16, 32)", "(32, 32)"]),
        ({"num_hidden_layers": 3}, ["lack", "layers"]),
        ({"num_hidden_layers": 1}, ["does not describe", "layers"]),
        ({"attention_bias": True}, ["lack", "bias"]),
    ],
    ids=["vocabulary", "mlp", "heads", "too_few_layers", "too_many_layers", "no_biases"],
)
def test_weights_of_another_model(model_folder, kind, changes, words):
    folder = model_folder(kind)
    edit_config(folder, **changes)
    assert_refused(folder, str(folder), *words, "weights and config.json belong to different models")


@pytest.mark.parametrize("model_type", ["t5", "", None, 7, ["llama"]])
def test_unknown_model_type_lists_the_supported_ones(model_folder, model_type):
    folder = model_folder()
    edit_config(folder, model_type=model_type)
    assert_refused(folder, "config.json", f"model_type={model_type!r}", *FAMILIES)


def test_missing_config(model_folder):
    folder = model_folder()
    (folder / "config.json").unlink()
    assert_refused(folder, str(folder / "config.json"), "not found")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe\x00", "starts as UTF-16-LE, but is not valid"),
        (b"\x80", "not UTF-8"),
        (b'"llama"', "not a JSON object"),
        (b'{"a": ' * 900 + b"1" + b"}" * 900, "nested deeper than 100 levels"),
    ],
)
def test_config_that_is_no_json_object(model_folder, content, said):
    folder = model_folder()
    (folder / "config.json").write_bytes(content)
    assert_refused(folder, str(folder / "config.json"), said)


def test_config_in_utf_16_is_read(model_folder):
    folder = model_folder()
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_bytes(text.encode("utf-16"))
    from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_labels": 100_000_000},
            "num_labels=100000000 exceeds the limit of 1,000",
        ),  # a table of 5 GB in transformers
        ({"num_hidden_layers": 100_000}, "num_hidden_layers=100000 exceeds the limit of 1,000"),
        ({"num_hidden_layers": 900}, "the weights lack layers"),  # known before 900 layers are traced
        ({"max_position_embeddings": 10**9}, "max_position_embeddings=1000000000 exceeds the limit of 16,777,216"),
        ({"vocab_size": 10**400}, "vocab_size=a number of 401 digits exceeds the limit"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps=a number of 401 digits exceeds the limit"),
        ({"rms_norm_eps": float("inf")}, "norm_epsilon=inf must be a finite number"),
        ({"rms_norm_eps": [1]}, "rms_norm_eps"),
        ({"hidden_size": [32]}, "hidden_size"),
        ({"hidden_size": True}, "True"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"head_dim": 7}, "head_dim"),
        ({"attention_bias": [1]}, "attention_bias"),
        ({"rope_parameters": [1]}, "rope_parameters"),
    ],
)
def test_config_of_sizes_and_kinds_that_no_model_has(model_folder, changes, said):
    folder = model_folder()
    edit_config(folder, **changes)
    if said:
        assert_refused(folder, "config.json", said)


@pytest.mark.parametrize("dtype", ["F4", "C64"])
def test_tensors_of_a_type_that_is_not_read_are_named(model_folder, dtype):
    folder = model_folder()
    header = {"model.norm.weight": {"dtype": dtype, "shape": [16 if dtype == "F4" else 8], "data_offsets": [0, 8]}}
    if dtype == "C64":
        header["model.norm.weight"]["shape"] = [1]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert_refused(folder, "model.safetensors", f"model.norm.weight ({dtype})", "F32, F16, BF16")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_folder_can_have(name):
    with pytest.raises(InputError, match="is not a folder"):
        from_pretrained(name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, ["num_attention_heads=8", "=3"]),
        ({"hidden_act": "softmax"}, ["softmax", "silu"]),
        ({"num_hidden_layers": "two"}, ["num_hidden_layers"]),
        ({"num_attention_heads": 0}, ["num_attention_heads"]),
        ({"vocab_size": None}, ["vocab_size"]),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, ["spiral", "default", "linear", "yarn"]),
        ({"rope_parameters": None, "rope_scaling": {"type": "spiral"}}, ["spiral", "default", "linear", "yarn"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, ["config.json", "NoneType"]),
        ({"head_dim": 0}, ["head_size=0 must be at least 1"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads must not be 0"]),
        ({"intermediate_size": 0}, ["mlp_size=0 must be at least 1"]),
    ],
    ids=[
        *("groups", "activation", "text", "no_heads", "null", "spiral", "old_spiral", "no_factor", "head_size"),
        *("kv_heads", "mlp_size"),
    ],
)
def test_unfit_field_of_the_config(model_folder, changes, words):
    folder = model_folder()
    edit_config(folder, **changes)
    assert_refused(folder, "config.json", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, ["sliding_window=None", "use_sliding"]),
        ({"model_type": "mistral", "sliding_window": 0}, ["sliding_window=0", "at least 1"]),
        ({"model_type": "mistral", "layer_types": ["chunked_attention"] * 2}, ["chunked_attention", "full_attention"]),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, ["layer_types"]),
    ],
    ids=["no_window", "empty_window", "chunks", "too_few"],
)
def test_layers_that_are_not_supported(model_folder, changes, words):
    folder = model_folder()
    edit_config(folder, **changes)
    assert_refused(folder, "config.json", *words)


def test_windows_that_llama_ignores_are_named(model_folder, caplog):
    folder = model_folder()
    edit_config(folder, sliding_window=3)
    from_pretrained(folder)
    assert "sliding_window and layer_types are ignored" in caplog.text


@pytest.mark.parametrize("damage", ["shape", "name", "bytes"])
def test_value_head_that_does_not_fit(model_folder, damage):
    folder = model_folder()
    path = folder / "value_head.safetensors"
    head = {"value_head/kernel": np.zeros((32, 1), np.float32), "value_head/bias": np.zeros(1, np.float32)}
    if damage == "shape":
        head["value_head/kernel"] = np.zeros((31, 1), np.float32)
    elif damage == "name":
        head["bias"] = head.pop("value_head/bias")
    safetensors.numpy.save_file(head, path)
    if damage == "bytes":
        path.write_bytes(b"no head")
    assert_refused(folder, str(path), "again", head="value")
    from_pretrained(folder)  # without the head there is nothing wrong


def test_reward_head_of_several_labels_is_refused(model_folder):
    folder = model_folder()
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["score.weight"] = np.zeros((2, 32), np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert_refused(folder, "score.weight", "(32, 2)", "(32, 1)", head="reward")


def test_buffers_of_older_classes_are_passed_over(model_folder):
    folder = model_folder()
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    from_pretrained(folder)


def test_tensor_that_no_layer_has_is_refused(model_folder):
    folder = model_folder()
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert_refused(folder, "does not describe", "q_norm")


@pytest.mark.parametrize(("before", "after"), [("safetensors", "flax"), ("flax", "safetensors")])
def test_saving_over_a_model_leaves_nothing_of_its_weights(model_folder, tiny_llama, before, after):
    folder = model_folder(before, "sharded")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "value_head.safetensors").write_bytes(b"of the model before")
    model, params = tiny_llama
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    save_pretrained(folder, model, doubled, format=after)
    assert set(tiny.files(folder)) == {"config.json", "tokenizer.json", weights.FILE_NAMES[after]}
    assert (folder / "tokenizer.json").read_text() == "{}"
    _, loaded = from_pretrained(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded, doubled)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # no staging left behind


def test_saving_that_fails_leaves_the_model_before_as_it_was(model_folder, tiny_llama, monkeypatch):
    folder = model_folder()
    before = tiny.files(folder)

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(weights, "write_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(folder, *tiny_llama)
    assert tiny.files(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
