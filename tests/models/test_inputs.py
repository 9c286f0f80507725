"""What a model is given must be what it can read: refused before it is computed, whichever argument is wrong."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import FAMILIES, inputs
from jaxrl_lm.models.encoder import Encoder
from tests.models import tiny

CONTEXT = 64
IDS = np.full((2, 8), 3)
MASK = np.ones((2, 8), np.int32)
LONG = np.full((2, CONTEXT + 4), 3)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def check(request):
    """`check_inputs` of a family's configuration, all arguments by name."""
    config = tiny.random_model(request.param)[0].config
    nothing = {"attention_mask": None, "position_ids": None, "cache": None, "segment_ids": None}
    return lambda **given: inputs.check_inputs(config, **{"input_ids": IDS, **nothing, **given})


def cache_of(model, used, size, batch=2):
    cache = model.config.init_cache(batch, size)
    return dataclasses.replace(cache, length=jnp.array(used), mask=cache.mask.at[:, :used].set(True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": np.full((2, 8), 101)}, r"input_ids: 101 \(row 0, column 0\) must be at least 0 and below 101"),
        ({"input_ids": -IDS}, "input_ids: -3"),
        ({"input_ids": IDS.astype(np.float32)}, "dtype float32 must be an integer type"),
        ({"attention_mask": MASK[:1]}, r"attention_mask: shape \(1, 8\) must equal that of input_ids, \(2, 8\)"),
        ({"attention_mask": -MASK}, "attention_mask: -1 must be 1"),
        ({"position_ids": np.full((2, 8), CONTEXT)}, "position_ids: 64 .* below 64; truncate the rows"),
        ({"position_ids": np.arange(8)}, r"position_ids: shape \(8,\) must equal"),
        ({"input_ids": LONG}, "row 0 has 68 tokens, but the model's context is 64"),
        ({"input_ids": LONG, "attention_mask": np.ones_like(LONG)}, "row 0 has 68 tokens"),
        ({"segment_ids": -MASK}, "segment_ids: -1 must be 0"),
        ({"input_ids": LONG, "segment_ids": np.ones_like(LONG)}, "segment_ids: a sequence of 68 tokens"),
    ],
)
def test_misfits_are_refused(check, given, message):
    with pytest.raises(InputError, match=message):
        check(**given)


def test_what_fits_passes(check):
    half = np.arange(CONTEXT + 4) < 4
    check(attention_mask=MASK, position_ids=np.full((2, 8), CONTEXT - 1))
    check(input_ids=np.where(MASK, IDS, 5000) - 3, attention_mask=MASK)
    check(input_ids=np.where(half, 5000, LONG), attention_mask=np.broadcast_to(~half, LONG.shape).astype(int))
    check(input_ids=LONG, segment_ids=np.broadcast_to(np.where(half, 1, 2), LONG.shape))


def test_a_full_cache_takes_no_more(tiny_gpt2, check):
    model = tiny_gpt2[0]
    check(cache=cache_of(model, used=4, size=12))
    for used, size, message in [(5, 12, "5 of its 12 slots are used, so 8 more tokens do not fit"), (0, 7, "0 of")]:
        with pytest.raises(InputError, match=f"cache: {message}"):
            check(cache=cache_of(model, used=used, size=size))
    with pytest.raises(InputError, match="cache: made for 3 rows, but input_ids has 2"):
        check(cache=cache_of(model, used=0, size=12, batch=3))
    with pytest.raises(InputError, match="row 0 has 68 tokens, but the model's context is 64"):
        check(cache=cache_of(model, used=60, size=70), attention_mask=MASK)


def test_the_models_themselves_check(tiny_gpt2):
    model, params = tiny_gpt2
    for method in (None, "encode"):
        with pytest.raises(InputError, match="input_ids: 101"):
            model.apply({"params": params}, np.full((1, 2), 101), method=method)
    with pytest.raises(InputError, match="context is 64"):
        jax.eval_shape(lambda ids: model.apply({"params": params}, ids), LONG)  # shapes are known to tracers as well


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": np.full((2, 8), 101)}, "input_ids: 101"),
        ({"input_ids": LONG}, "rows have 68 tokens, but the model's context is 64"),
        ({"token_type_ids": np.full((2, 8), 2)}, "token_type_ids: 2 .* below 2"),
        ({"attention_mask": MASK * 3}, "attention_mask: 3"),
        ({"position_ids": np.full((2, 8), 64)}, "position_ids: 64"),
        ({"position_ids": np.arange(60, 68)}, "position_ids: 64"),
    ],
)
def test_an_encoder_checks_as_well(given, message):
    model = Encoder(FAMILIES["bert"].config_from_hf(tiny.hf_config("bert", **tiny_bert()).to_dict()))
    with pytest.raises(InputError, match=message):
        model.apply({"params": {}}, **{"input_ids": IDS, **given})


def tiny_bert():
    return {"intermediate_size": 40}


def test_inside_jit_no_value_is_read(tiny_gpt2):
    model, params = tiny_gpt2
    run = jax.jit(partial(model.apply, {"params": params}))
    assert run(IDS, attention_mask=MASK).logits.shape == (2, 8, tiny.VOCAB_SIZE)
    jaxpr = str(jax.make_jaxpr(lambda ids: inputs.check_inputs(model.config, ids, MASK, None, None, None))(IDS))
    assert jaxpr == str(jax.make_jaxpr(lambda ids: None)(IDS))
