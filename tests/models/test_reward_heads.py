"""Reward normalisation: gain and bias, where they are stored, and torch's scores with them."""

import jax
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained, reward_heads, save_pretrained
from jaxrl_lm.models.reward_heads import RewardScale
from tests.models import tiny
from tests.rewards.reward_folders import write_decoder, write_encoder

IDS = np.random.default_rng(0).integers(1, 13, (5, 9)).astype(np.int32)


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def reward_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads") / request.param
    (write_decoder if request.param == "decoder" else write_encoder)(folder)
    return from_pretrained(folder, "reward")


def scores_of(model, params):
    return np.asarray(jax.jit(lambda p: model.apply({"params": p}, IDS).scores)(params))


def test_gain_and_bias_worked_by_hand():
    # Mean 3, biased standard deviation 2.
    assert reward_heads.measure_scale(np.array([1.0, 5.0, 1.0, 5.0])) == (0.5, -1.5)


def test_normalised_samples_have_mean_0_and_standard_deviation_1(reward_model):
    model, params = reward_model
    gain, bias = reward_heads.measure_scale(scores_of(model, params))
    scaled, offset = reward_heads.scale_head(model, params, gain, bias)
    scores = scores_of(model, scaled) + offset
    assert np.mean(scores) == pytest.approx(0.0, abs=1e-5)
    assert np.std(scores) == pytest.approx(1.0, abs=1e-5)


def test_scaling_leaves_the_network_and_the_given_parameters_alone(reward_model):
    model, params = reward_model
    before = jax.tree.map(np.array, params)
    scaled, _ = reward_heads.scale_head(model, params, 3.0, 1.0)
    jax.tree.map(np.testing.assert_array_equal, before, params)
    assert all(scaled[name] is params[name] for name in params if name != model.family.score_head)


def test_torch_gives_the_scaled_score_but_for_the_offset(reward_model, tmp_path):
    model, params = reward_model
    scaled, offset = reward_heads.scale_head(model, params, 2.5, -0.75)
    assert offset == (-0.75 if model.family.is_causal else 0.0)
    model = reward_heads.with_padding(model, 0)
    save_pretrained(tmp_path / "m", model, scaled)
    theirs, info = tiny.torch_load(AutoModelForSequenceClassification, tmp_path / "m")
    assert not info["missing_keys"]
    assert theirs.config.pad_token_id == 0
    expected = 2.5 * scores_of(model, params) - 0.75
    mask = np.ones_like(IDS)
    actual = tiny.torch_logits(theirs, IDS, mask)[:, 0] + offset
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_samples_without_a_spread_are_refused(scores):
    with pytest.raises(InputError, match="num_samples"):
        reward_heads.measure_scale(np.array(scores))


def test_new_head_is_drawn_with_the_asked_deviation(reward_model):
    model, params = reward_model
    name, width = model.family.score_head, model.config.model_size
    wide = {**params, name: {**params[name], "kernel": np.zeros((width, 1), np.float32)}}
    draws = [
        np.asarray(reward_heads.new_head(model, wide, jax.random.key(seed))[name]["kernel"]) for seed in range(200)
    ]
    assert np.std(draws) == pytest.approx((width + 1) ** -0.5, rel=0.05)
    np.testing.assert_array_equal(reward_heads.new_head(model, params, jax.random.key(0), 0.0)[name]["kernel"], 0.0)


def test_scale_comes_back_and_saving_a_model_over_it_takes_it_away(reward_model, tmp_path):
    folder = tmp_path / "m"
    save_pretrained(folder, *reward_model)
    assert reward_heads.read_scale(folder) == RewardScale()
    scale = RewardScale(gain=0.1, bias=-3.0, offset=-3.0, max_tokens=8)
    reward_heads.write_scale(folder, scale)
    assert reward_heads.read_scale(folder) == scale
    save_pretrained(folder, *reward_model)
    assert reward_heads.read_scale(folder) == RewardScale()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"gain": "x"}', '{"gain": NaN}', '{"gain": 0}', '{"gain": 1, "shift": 2}', '{"gain": null}'),
        *('{"max_tokens": 0}', '{"max_tokens": 8.0}', '{"max_tokens": true}', '{"max_tokens": "8"}'),
    ],
)
def test_damaged_scale_is_refused(tmp_path, text):
    (tmp_path / "reward_scale.json").write_text(text)
    with pytest.raises(InputError, match=r"reward_scale\.json.*save the reward model again"):
        reward_heads.read_scale(tmp_path)
