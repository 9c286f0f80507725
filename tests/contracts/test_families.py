"""What every family of decoders must do: parity with Hugging Face, cache, save and load, heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.tree_util import tree_leaves_with_path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from jaxrl_lm.core.token_log_probs import token_log_probs
from jaxrl_lm.distributed import RULES
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import (
    CausalLM,
    from_pretrained,
    logical_axes,
    param_shapes,
    save_pretrained,
    stack_layers,
    unstack_layers,
)
from jaxrl_lm.models.causal_lm import unembed
from jaxrl_lm.models.lora import adapted_projections, with_lora
from jaxrl_lm.models.lora_config import LoraConfig
from tests.models import tiny
from tests.models.tiny import forward

TOLERANCE = 1e-4
SHARD_BYTES = 20_000  # several shards of each tiny model


@pytest.fixture(scope="module", params=tiny.VARIANTS)
def variant(request, tmp_path_factory):
    """A variant as torch's class, as its folder, and as ours."""
    return load(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=tiny.DECODERS)
def family(request, tmp_path_factory):
    """The plain form of a family, for what does not depend on the variant."""
    return load(request.param, tmp_path_factory)


def load(name, tmp_path_factory):
    torch_model = tiny.torch_model(name)
    folder = tmp_path_factory.mktemp(name)
    torch_model.save_pretrained(folder)
    model, params = from_pretrained(folder)
    return torch_model, folder, model, params


def assert_same_where_real(actual, expected, mask):
    np.testing.assert_allclose(np.asarray(actual)[mask == 1], np.asarray(expected)[mask == 1], rtol=0, atol=TOLERANCE)


def assert_same_bits(actual, expected):
    actual, expected = (dict(tree_leaves_with_path(tree)) for tree in (actual, expected))
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        assert actual[path].dtype == leaf.dtype, path
        assert np.asarray(actual[path]).tobytes() == np.asarray(leaf).tobytes(), path


def test_every_family_has_a_variant():
    assert {model_type for model_type, _ in tiny.VARIANTS.values()} == set(tiny.DECODERS)


def test_logits_equal_those_of_hugging_face_with_padding_on_either_side(variant):
    torch_model, _, model, params = variant
    ids, mask = tiny.padded_batch()
    expected = tiny.torch_logits(torch_model, ids, mask)
    assert np.std(expected[mask == 1]) > 0.1  # a model that says nothing would agree with anything
    assert_same_where_real(forward(model, params, ids, mask).logits, expected, mask)


def test_log_probs_from_hidden_states_are_those_of_the_logits(variant):
    _, _, model, params = variant
    ids, mask = tiny.padded_batch()
    output = forward(model, params, ids, mask)
    tokens = np.where(mask == 1, ids, 0)
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(output.logits)), tokens[..., None], axis=-1)[..., 0]
    log_probs, _ = jax.jit(token_log_probs)(output.hidden_states, model.unembedding(params), tokens)
    np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-5)
    decoded = unembed(output.hidden_states[:, -1], model.unembedding(params))  # as generation does
    np.testing.assert_allclose(decoded, output.logits[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, SHARD_BYTES], ids=["whole", "sharded"])
@pytest.mark.parametrize("file_format", ["safetensors", "flax"])
def test_what_is_saved_comes_back_bit_for_bit(variant, tmp_path, file_format, max_shard_bytes, dtype):
    _, _, model, params = variant
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    save_pretrained(tmp_path / "model", model, params, format=file_format, max_shard_bytes=max_shard_bytes)
    is_sharded = any(path.name.endswith(".index.json") for path in (tmp_path / "model").iterdir())
    assert is_sharded == (max_shard_bytes == SHARD_BYTES)
    loaded_model, loaded = from_pretrained(tmp_path / "model", param_dtype=dtype)
    assert_same_bits(loaded, params)
    assert loaded_model.config.hf_config() | {"architectures": None, "dtype": None} == (
        model.config.hf_config() | {"architectures": None, "dtype": None}
    )


@pytest.mark.parametrize("max_shard_bytes", [10**9, SHARD_BYTES], ids=["whole", "sharded"])
def test_hugging_face_loads_what_we_save(variant, tmp_path, max_shard_bytes):
    torch_model, _, model, params = variant
    save_pretrained(tmp_path / "model", model, params, max_shard_bytes=max_shard_bytes)
    theirs, info = tiny.torch_load(AutoModelForCausalLM, tmp_path / "model")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(theirs) is type(torch_model)
    ids, mask = tiny.padded_batch()
    expected = tiny.torch_logits(torch_model, ids, mask)
    assert_same_where_real(tiny.torch_logits(theirs, ids, mask), expected, mask)


@pytest.mark.parametrize("pieces", [(1,) * tiny.WIDTH, (5, 1, 5)], ids=["one_at_a_time", "in_pieces"])
def test_cache_gives_what_the_whole_sequence_gives(variant, pieces):
    _, _, model, params = variant
    ids, mask = tiny.padded_batch()
    cache = model.config.init_cache(len(ids), tiny.WIDTH + 3)
    logits, start = [], 0
    for size in pieces:
        output = forward(model, params, ids[:, start : start + size], mask[:, start : start + size], cache)
        logits.append(output.logits)
        cache, start = output.cache, start + size
    assert int(cache.length) == tiny.WIDTH
    expected = forward(model, params, ids, mask).logits
    assert_same_where_real(jnp.concatenate(logits, axis=1), expected, mask)


def test_logits_do_not_depend_on_what_stands_under_the_padding(variant):
    _, _, model, params = variant
    ids, mask = tiny.padded_batch()
    expected = forward(model, params, ids, mask).logits
    outside = np.where(mask == 1, ids, 10 * tiny.VOCAB_SIZE)  # a pad id outside the vocabulary
    np.testing.assert_array_equal(forward(model, params, outside, mask).logits, expected)


def test_sequences_packed_in_one_row_are_as_in_rows_of_their_own(variant):
    _, _, model, params = variant
    lengths, order = (5, 11, 7), (1, 0, 2)  # the second row is packed in another order, with padding behind
    ids = np.random.default_rng(3).integers(0, tiny.PAD_TOKEN, (3, 11))
    alone = forward(model, params, ids, np.arange(11) < np.array(lengths)[:, None]).logits
    rows = [list(range(3)), [i for i in order if i]]
    packed = np.full((2, 26), 10 * tiny.VOCAB_SIZE)
    segment_ids = np.zeros((2, 26), np.int32)
    expected = {}
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members, 1):
            stop = start + lengths[member]
            packed[row, start:stop] = ids[member, : lengths[member]]
            segment_ids[row, start:stop] = number
            expected[row, start, stop] = alone[member, : lengths[member]]
            start = stop
    logits = forward(model, params, packed, None, segment_ids=segment_ids).logits
    for (row, start, stop), wanted in expected.items():
        np.testing.assert_allclose(logits[row, start:stop], wanted, rtol=0, atol=1e-5)
    changed = np.where(segment_ids == 1, (packed + 1) % tiny.PAD_TOKEN, packed)
    others = forward(model, params, changed, None, segment_ids=segment_ids).logits
    difference = np.abs(np.asarray(others - logits))
    assert np.max(difference[segment_ids > 1]) == 0.0
    assert np.max(difference[segment_ids == 1]) > 0.01


def test_a_scanned_stack_gives_what_its_blocks_give(variant, request):
    _, _, model, params = variant
    ids, mask = tiny.padded_batch()
    scanned = model.clone(is_scanned=True)
    if request.node.callspec.params["variant"] in tiny.UNLIKE_LAYERS:
        with pytest.raises(InputError, match="scan_layers=true: layers 0 of this model"):
            param_shapes(scanned)
        return
    stacked = stack_layers(params, model.family.layers)
    assert jax.tree.structure(stacked) == jax.tree.structure(param_shapes(scanned))
    assert_same_where_real(forward(scanned, stacked, ids, mask).logits, forward(model, params, ids, mask).logits, mask)
    assert_same_bits(unstack_layers(stacked, model.family.layers), params)
    cache = model.config.init_cache(len(ids), tiny.WIDTH, is_scanned=True)
    first = forward(scanned, stacked, ids[:, :5], mask[:, :5], cache)
    rest = forward(scanned, stacked, ids[:, 5:], mask[:, 5:], first.cache)
    logits = jnp.concatenate([first.logits, rest.logits], axis=1)
    assert_same_where_real(logits, forward(model, params, ids, mask).logits, mask)


def test_every_matrix_has_logical_axes(family):
    _, _, model, _ = family
    for head in (None, "value", "reward"):
        module = model.clone(head=head)
        for scanned in (module, module.clone(is_scanned=True)):
            axes, shapes = flatten_dict(logical_axes(scanned)), flatten_dict(param_shapes(scanned))
            assert axes.keys() == shapes.keys()
            for path, names in axes.items():
                assert len(names) == len(shapes[path].shape), path
                assert set(names) <= {*RULES, None}, path
                if path[-1] in ("weight", "embedding"):
                    assert None not in names, path


def test_segment_ids_stand_alone(family):
    _, _, model, params = family
    ids, mask = tiny.padded_batch()
    with pytest.raises(InputError, match="segment_ids: not allowed with"):
        forward(model, params, ids, mask, segment_ids=mask)


def test_rematerialised_gradients_are_the_same(family):
    _, _, model, params = family
    ids, mask = tiny.padded_batch()

    def gradients(remat):
        module = CausalLM(model.config, remat=remat)

        def loss(p):
            return jnp.sum(jnp.square(forward(module, p, ids, mask).logits) * mask[..., None]) / 1e3

        return jax.jit(jax.grad(loss))(params)

    plain, rematerialised = gradients("none"), gradients("full")
    for (path, leaf), other in zip(tree_leaves_with_path(plain), jax.tree.leaves(rematerialised), strict=True):
        assert np.all(np.isfinite(leaf)), path
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-5 * np.max(np.abs(leaf)), err_msg=str(path))


@pytest.mark.parametrize("file_format", ["safetensors", "flax"])
def test_value_head_starts_at_zero_is_saved_and_comes_back(family, tmp_path, file_format):
    _, folder, _, _ = family
    model, params = from_pretrained(folder, head="value")
    ids, mask = tiny.padded_batch()
    np.testing.assert_array_equal(forward(model, params, ids, mask).values, 0)
    weight = jax.random.normal(jax.random.key(1), params["value_head"]["kernel"].shape)
    params = {**params, "value_head": {"kernel": weight, "bias": jnp.array([0.5])}}
    save_pretrained(tmp_path / "model", model, params, format=file_format)
    loaded_model, loaded = from_pretrained(tmp_path / "model", head="value")
    assert_same_bits(loaded, params)
    output = forward(loaded_model, loaded, ids, mask)
    expected = (output.hidden_states @ weight)[..., 0] + 0.5
    np.testing.assert_allclose(output.values, expected, rtol=1e-5, atol=1e-5)
    _, headless = from_pretrained(tmp_path / "model")
    assert "value_head" not in headless


def test_hugging_face_scores_as_our_saved_reward_head_does(variant, tmp_path):
    _, folder, _, _ = variant
    model, params = from_pretrained(folder, head="reward", key=jax.random.key(3))
    save_pretrained(tmp_path / "model", model, params)
    loaded_model, loaded = from_pretrained(tmp_path / "model", head="reward")
    assert_same_bits(loaded, params)
    theirs, info = tiny.torch_load(AutoModelForSequenceClassification, tmp_path / "model")
    assert not info["missing_keys"]
    assert theirs.config.num_labels == 1
    ids, mask = tiny.padded_batch()
    expected = tiny.torch_logits(theirs, ids, mask)[:, 0]
    assert np.std(expected) > 0.05
    scores = forward(loaded_model, loaded, ids, mask).scores
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)


def test_reward_head_of_a_hugging_face_classifier_loads(variant, request, tmp_path):
    name = request.node.callspec.params["variant"]
    theirs = tiny.torch_model(name, is_classifier=True)
    theirs.save_pretrained(tmp_path)
    model, params = from_pretrained(tmp_path, head="reward")
    ids, mask = tiny.padded_batch()
    expected = tiny.torch_logits(theirs, ids, mask)[:, 0]
    np.testing.assert_allclose(forward(model, params, ids, mask).scores, expected, rtol=0, atol=TOLERANCE)


def test_weights_without_their_prefix_load(variant, tmp_path):
    _, folder, model, params = variant
    prefix = model.family.prefix + "."
    tensors = load_file(folder / "model.safetensors")
    assert any(name.startswith(prefix) for name in tensors)
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    _, loaded = from_pretrained(tmp_path)
    assert_same_bits(loaded, params)


def test_bfloat16_activations_stay_close_and_heads_stay_float32(family):
    torch_model, folder, _, _ = family
    model, params = from_pretrained(folder, head="value", dtype=jnp.bfloat16)
    ids, mask = tiny.padded_batch()
    output = forward(model, params, ids, mask)
    assert output.hidden_states.dtype == jnp.bfloat16
    assert output.logits.dtype == jnp.float32
    assert output.values.dtype == jnp.float32
    expected = tiny.torch_logits(torch_model, ids, mask)[mask == 1]
    error = np.abs(np.asarray(output.logits)[mask == 1] - expected)
    assert np.mean(error) < 0.03 * np.std(expected)


def test_every_projection_of_the_blocks_can_have_an_adapter(family):
    _, _, model, params = family
    adapted = adapted_projections(with_lora(model, LoraConfig(rank=1)))
    # The router and the experts of a mixture are no linear layers in torch, so PEFT has no adapters for them.
    paths = [path for path in flatten_dict(params) if path[-2] != "gate" and "experts" not in path]
    projections = {path[:-1] for path in paths if path[-1] == "weight"}
    assert projections
    assert set(adapted) == projections
