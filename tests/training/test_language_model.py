"""Loading of models for training: options that reach the model, and layers that cannot be stacked."""

import jax.numpy as jnp
import pytest
from transformers import BertConfig, BertForSequenceClassification

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import attention_kernels, save_pretrained
from jaxrl_lm.models.causal_lm import encode
from jaxrl_lm.training.language_model import load_model
from tests.models import tiny


def test_an_encoder_is_not_scanned(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=1, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"scan_layers=true: model '.*' is an encoder.*leave the option out"):
        load_model(tmp_path, "reward", scan_layers=True)
    for value in (None, False):
        assert not hasattr(
            load_model(tmp_path, "reward", scan_layers=value, tokenizer="of another").model, "is_scanned"
        )


def test_layers_that_differ_are_not_scanned(tmp_path):
    model_type, options = tiny.VARIANTS["qwen3_moe_some_dense"]
    save_pretrained(tmp_path, *tiny.random_model(model_type, **options))
    with pytest.raises(InputError, match="scan_layers=true: layers 0 of this model have no experts"):
        load_model(tmp_path, scan_layers=True)


@pytest.mark.parametrize("attention", ["auto", "plain"])
def test_the_choice_of_attention_reaches_the_model(tmp_path, monkeypatch, attention):
    save_pretrained(tmp_path, *tiny.random_model("llama"))
    loaded = load_model(tmp_path, attention=attention, tokenizer="of another")
    asked = []
    monkeypatch.setattr(attention_kernels, "choose", lambda *args: asked.append(args))
    encode(loaded.model, loaded.params, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), jnp.int32))
    assert bool(asked) == (attention == "auto")
