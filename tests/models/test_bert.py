"""BERT as a reward model: parity with Hugging Face, in both directions, and folders that are no reward model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import Encoder, from_pretrained, save_pretrained
from tests.models import tiny

TOLERANCE = 1e-5
SIZES = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "num_labels": 1,
    "pad_token_id": 0,
}


def bert_config(**options):
    return BertConfig(**(SIZES | options))


def shake(model):
    """Weights with norms away from 1 and biases away from 0, so that a lost one shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if name.endswith("LayerNorm.weight") else 0.2 * noise)
    return model.float().eval()


@pytest.fixture(scope="module")
def theirs():
    return shake(BertForSequenceClassification._from_config(bert_config(), attn_implementation="eager"))


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return from_pretrained(folder, "reward")


@pytest.fixture(scope="module")
def batch():
    """Ids, mask and segments `[4, WIDTH]`, padded on the right."""
    generator = np.random.default_rng(1)
    lengths = np.array([tiny.WIDTH, 7, 3, 9])
    mask = (np.arange(tiny.WIDTH) < lengths[:, None]).astype(np.int32)
    ids = generator.integers(1, tiny.PAD_TOKEN, mask.shape) * mask
    types = (np.arange(tiny.WIDTH) >= lengths[:, None] // 2).astype(np.int32) * mask
    return ids.astype(np.int32), mask, types


def run(model, params, ids, mask, types=None):
    return jax.jit(lambda p: model.apply({"params": p}, ids, mask, None, types))(params)


def torch_scores(model, ids, mask, types):
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return model(**{name: torch.tensor(array).long() for name, array in inputs.items()}).logits[:, 0].numpy()


def test_scores_equal_those_of_the_flax_class(shared_data):
    folder = shared_data / "hf_flax" / "bert_score"
    expected = np.load(folder / "expected.npz")
    output = run(*from_pretrained(folder, "reward"), expected["input_ids"], expected["attention_mask"])
    np.testing.assert_allclose(output.scores, expected["output"][:, 0], rtol=0, atol=TOLERANCE)


def test_scores_equal_those_of_torch(ours, theirs, batch):
    expected = torch_scores(theirs, *batch)
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(run(*ours, *batch).scores, expected, rtol=0, atol=TOLERANCE)


def test_hidden_states_equal_those_of_torch(ours, theirs, batch):
    ids, mask, types = (torch.tensor(array).long() for array in batch)
    with torch.no_grad():
        expected = theirs.bert(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state.numpy()
    actual = np.asarray(run(*ours, *batch).hidden_states)
    np.testing.assert_allclose(actual[batch[1] == 1], expected[batch[1] == 1], rtol=0, atol=1e-4)


def test_segments_change_the_score_and_are_zeros_unless_given(ours, batch):
    ids, mask, types = batch
    plain = run(*ours, ids, mask).scores
    np.testing.assert_array_equal(plain, run(*ours, ids, mask, np.zeros_like(types)).scores)
    assert np.min(np.abs(plain - run(*ours, *batch).scores)) > 1e-4


def test_padding_does_not_change_the_score(ours, batch):
    ids, mask, types = batch
    wide = [np.pad(array, ((0, 0), (0, 4)), constant_values=value) for array, value in ((ids, 9999), (mask, 0))]
    scores = run(*ours, *wide, np.pad(types, ((0, 0), (0, 4)))).scores
    np.testing.assert_allclose(scores, run(*ours, *batch).scores, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("file_format", ["safetensors", "flax"])
def test_what_is_saved_comes_back_bit_for_bit(ours, tmp_path, file_format, max_shard_bytes):
    model, params = ours
    save_pretrained(tmp_path / "m", model, params, format=file_format, max_shard_bytes=max_shard_bytes)
    loaded_model, loaded = from_pretrained(tmp_path / "m", "reward")
    assert isinstance(loaded_model, Encoder)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_flax_names_are_those_that_the_flax_class_wrote(shared_data, tmp_path):
    from jaxrl_lm.models.weights import read_weights

    folder = shared_data / "hf_flax" / "bert_score"
    save_pretrained(tmp_path / "m", *from_pretrained(folder, "reward"), format="flax")
    (ours, _), (theirs, _) = read_weights(tmp_path / "m"), read_weights(folder)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_hugging_face_scores_as_what_we_save(ours, batch, tmp_path):
    model, params = ours
    params = {**params, "classifier": {"kernel": 3 * params["classifier"]["kernel"], "bias": jnp.array([0.7])}}
    save_pretrained(tmp_path / "m", model, params)
    loaded, info = tiny.torch_load(AutoModelForSequenceClassification, tmp_path / "m")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.num_labels == 1
    np.testing.assert_allclose(run(model, params, *batch).scores, torch_scores(loaded, *batch), rtol=0, atol=TOLERANCE)


def test_encoder_without_a_score_head_needs_a_key(tmp_path, batch):
    theirs = shake(BertModel._from_config(bert_config(), attn_implementation="eager"))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no score head.*reward-model"):
        from_pretrained(tmp_path, "reward")
    model, params = from_pretrained(tmp_path, "reward", key=jax.random.key(0))
    with torch.no_grad():
        ids, mask, types = (torch.tensor(array).long() for array in batch)
        pooled = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).pooler_output.numpy()
    expected = pooled @ np.asarray(params["classifier"]["kernel"])[:, 0]
    np.testing.assert_allclose(run(model, params, *batch).scores, expected, rtol=0, atol=TOLERANCE)


def test_masked_language_model_lends_its_encoder_and_gets_a_pooler(tmp_path):
    theirs = shake(BertForMaskedLM._from_config(bert_config()))
    theirs.save_pretrained(tmp_path)
    _, params = from_pretrained(tmp_path, "reward", key=jax.random.key(0))
    word = params["backbone"]["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(word, theirs.bert.embeddings.word_embeddings.weight.detach().numpy())
    assert np.std(params["backbone"]["pooler"]["dense"]["weight"]) == pytest.approx(0.02, rel=0.15)


def test_new_head_has_the_standard_deviation_of_the_paper(tmp_path):
    BertModel(bert_config(hidden_size=1024, num_hidden_layers=1)).save_pretrained(tmp_path)
    _, params = from_pretrained(tmp_path, "reward", key=jax.random.key(0))
    assert np.std(params["classifier"]["kernel"]) == pytest.approx(1025**-0.5, rel=0.1)
    np.testing.assert_array_equal(params["classifier"]["bias"], 0)


def test_norms_named_gamma_and_beta_load(folder, ours, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(tmp_path, "reward")[1], ours[1])


@pytest.mark.parametrize("head", [None, "value"])
def test_encoder_is_refused_as_a_policy(folder, head):
    with pytest.raises(InputError, match=r"'bert' is an encoder.*decoder"):
        from_pretrained(folder, head)


def test_classifier_of_several_labels_is_refused(tmp_path):
    BertForSequenceClassification(bert_config(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"classifier\.\w+ has shape .*num_labels=1"):
        from_pretrained(tmp_path, "reward")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("hidden_size", 30, "num_attention_heads=4"), ("is_decoder", True, "is_decoder")],
)
def test_unfit_config_is_refused(folder, tmp_path, field, value, words):
    import json

    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(InputError, match=words):
        from_pretrained(tmp_path, "reward")


def test_rematerialised_gradients_are_the_same(ours, batch):
    model, params = ours

    def gradient(module):
        def loss(p):
            return jnp.sum(jnp.square(module.apply({"params": p}, batch[0], batch[1], None, batch[2]).scores))

        return jax.jit(jax.grad(loss))(params)

    plain, rematerialised = gradient(model), gradient(model.clone(remat="full"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), plain, rematerialised)
