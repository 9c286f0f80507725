"""Tied embeddings, value heads of TRL and tensors that are not used: as transformers has them, never in silence."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained, save_pretrained
from tests.models import tiny

EMBEDDING = {"llama_grouped_tied": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}
D = 32


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of tied models."""
    folders = {name: tmp_path_factory.mktemp(name) for name in EMBEDDING}
    for name, folder in folders.items():
        tiny.torch_model(name).save_pretrained(folder)
    return folders


@pytest.fixture
def variant(whole, tmp_path):
    """A folder of a tied model with other tensors: `variant(name, added, without)`."""

    def write(name, added, without=()):
        tensors = load_file(whole[name] / "model.safetensors")
        kept = {key: tensor for key, tensor in tensors.items() if key not in without}
        save_file(kept | added, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_bytes((whole[name] / "config.json").read_bytes())
        return tmp_path

    return write


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def logits(folder, **options):
    ids, mask = tiny.padded_batch()
    return np.asarray(tiny.forward(*from_pretrained(folder, **options), ids, mask).logits)[mask == 1]


def assert_as_torch(folder):
    ids, mask = tiny.padded_batch()
    theirs, info = tiny.torch_load(AutoModelForCausalLM, folder)
    assert not info["missing_keys"]
    expected = tiny.torch_logits(theirs, ids, mask)[mask == 1]
    np.testing.assert_allclose(logits(folder), expected, rtol=0, atol=1e-4)
    return expected


@pytest.mark.parametrize("name", EMBEDDING)
def test_unembedding_that_differs_from_the_tied_embedding_is_used(variant, whole, caplog, name, tmp_path):
    folder = variant(name, {"lm_head.weight": random(tiny.VOCAB_SIZE, D)})
    expected = assert_as_torch(folder)
    assert np.max(np.abs(expected - logits(whole[name]))) > 1
    assert "lm_head.weight differ" in caplog.text
    model, params = from_pretrained(folder)
    save_pretrained(tmp_path / "saved", model, params)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False
    np.testing.assert_array_equal(assert_as_torch(tmp_path / "saved"), expected)


@pytest.mark.parametrize("name", EMBEDDING)
def test_unembedding_that_equals_the_tied_embedding_stays_tied(variant, whole, caplog, name):
    same = load_file(whole[name] / "model.safetensors")[EMBEDDING[name]].clone()
    folder = variant(name, {"lm_head.weight": same})
    model, params = from_pretrained(folder)
    assert model.config.is_tied
    assert "lm_head" not in params
    assert not caplog.records


@pytest.mark.parametrize("name", EMBEDDING)
def test_tied_model_that_stores_only_the_unembedding_loads(variant, whole, name):
    tensor = load_file(whole[name] / "model.safetensors")[EMBEDDING[name]].clone()
    folder = variant(name, {"lm_head.weight": tensor}, without=[EMBEDDING[name]])
    np.testing.assert_array_equal(assert_as_torch(folder), assert_as_torch(whole[name]))


def test_untied_model_without_unembedding_is_refused(variant):
    folder = variant("llama_grouped_tied", {})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(InputError, match=r"the weights lack lm_head\.weight"):
        from_pretrained(folder)


TRL_HEAD = {"v_head.summary.weight": random(1, D), "v_head.summary.bias": torch.tensor([0.5])}


@pytest.mark.parametrize("name", EMBEDDING)
def test_value_head_of_trl_is_loaded_and_saved_as_ours(variant, caplog, name, tmp_path):
    folder = variant(name, TRL_HEAD)
    model, params = from_pretrained(folder, head="value")
    assert not caplog.records
    ids, mask = tiny.padded_batch()
    output = tiny.forward(model, params, ids, mask)
    # As in TRL's ValueHead: a Linear(D, 1) of the hidden states after the last norm.
    weight, bias = TRL_HEAD["v_head.summary.weight"].numpy(), 0.5
    expected = np.asarray(output.hidden_states) @ weight[0] + bias
    np.testing.assert_allclose(output.values, expected, rtol=1e-5, atol=1e-4)
    save_pretrained(tmp_path / "saved", model, params)
    _, loaded = from_pretrained(tmp_path / "saved", head="value")
    np.testing.assert_array_equal(loaded["value_head"]["kernel"], weight.T)
    np.testing.assert_array_equal(loaded["value_head"]["bias"], [bias])


def test_saved_value_head_gives_torch_the_same_values(variant, tmp_path):
    # The lines that README shows for TRL and torch.
    model, params = from_pretrained(variant("gpt2", TRL_HEAD), head="value")
    save_pretrained(tmp_path / "saved", model, params)
    head = load_file(tmp_path / "saved" / "value_head.safetensors")
    summary = torch.nn.Linear(D, 1)
    summary.load_state_dict({"weight": head["value_head/kernel"].T, "bias": head["value_head/bias"]})
    theirs, _ = tiny.torch_load(AutoModelForCausalLM, tmp_path / "saved")
    ids, mask = tiny.padded_batch()
    with torch.no_grad():
        hidden = theirs(torch.tensor(ids[:1]).long(), output_hidden_states=True).hidden_states[-1]
        expected = summary(hidden)[..., 0].numpy()
    np.testing.assert_allclose(tiny.forward(model, params, ids, mask).values[:1], expected, rtol=0, atol=1e-4)


def test_value_head_of_another_width_is_refused(variant):
    folder = variant("gpt2", {"v_head.summary.weight": random(2, D)})
    with pytest.raises(InputError, match=r"v_head\.summary\.weight has shape \(32, 2\), expected \(32, 1\)"):
        from_pretrained(folder, head="value")


@pytest.mark.parametrize(
    ("head", "added", "named"),
    [
        (None, TRL_HEAD, "no head and does not use v_head.summary.bias, v_head.summary.weight"),
        ("value", {"v_head.0.weight": random(D, D)}, 'head="value" and does not use v_head.0.weight'),
        (None, {"score.weight": random(1, D)}, "no head and does not use score.weight"),
        (None, {"lm_head.bias": random(tiny.VOCAB_SIZE)}, "no head and does not use lm_head.bias"),
        ("reward", {"score.weight": random(1, D), **TRL_HEAD}, "does not use v_head.summary.bias, v_head.summary"),
    ],
)
def test_head_that_is_not_used_is_named(variant, caplog, head, added, named):
    from_pretrained(variant("gpt2", added), head=head)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert named in caplog.text


def test_reward_model_from_a_language_model_leaves_its_unembedding_without_a_word(variant, caplog):
    added = {"lm_head.weight": random(tiny.VOCAB_SIZE, D), "score.weight": random(1, D)}
    from_pretrained(variant("gpt2", added), head="reward")
    assert "does not use" not in caplog.text
