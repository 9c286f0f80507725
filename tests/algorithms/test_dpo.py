"""DPO: log 2 at the start, loss and gradient against torch, and pairs that count nothing."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxrl_lm.algorithms import AdamWConfig, DPOLossConfig, ReferencedRows, make_dpo, sequence_log_probs
from jaxrl_lm.algorithms.dpo import DPOHyperparams, dpo_loss, make_dpo_loss
from jaxrl_lm.core.preference_losses import bradley_terry_loss
from jaxrl_lm.data import EncodedText, PackedRows
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.training.offline.preferences import one_row_each
from tests.models import tiny

BETA, SMOOTHING = 0.3, 0.1


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A tiny GPT-2 as torch's class and as ours."""
    torch_model = tiny.torch_model("gpt2")
    folder = tmp_path_factory.mktemp("gpt2")
    torch_model.save_pretrained(folder)
    return torch_model, *from_pretrained(folder)


def make_pairs(count: int = 3) -> list[tuple[EncodedText, EncodedText]]:
    rng = np.random.default_rng(5)
    pairs = []
    for _ in range(count):
        prompt = rng.integers(0, tiny.PAD_TOKEN, rng.integers(1, 4)).tolist()
        answers = [rng.integers(0, tiny.PAD_TOKEN, rng.integers(1, 6)).tolist() for _ in range(2)]
        pairs.append(tuple(EncodedText(ids=prompt + each, num_prompt_tokens=len(prompt)) for each in answers))
    return pairs


def batch_of(pairs: Any, reference: Any, num_padding: int = 0) -> ReferencedRows:
    rows = one_row_each(pairs)
    padded = PackedRows(*(np.pad(part, ((0, num_padding), (0, 0), (0, 0))) for part in rows))
    return ReferencedRows(padded, np.pad(np.asarray(reference, np.float32), ((0, num_padding), (0, 0))))


@partial(jax.jit, static_argnums=0)
def loss_and_grad(model: Any, params: Any, batch: ReferencedRows, beta: float, smoothing: float) -> Any:
    traced = DPOHyperparams(beta=beta, label_smoothing=smoothing)

    def mean(params: Any) -> Any:
        sums = make_dpo_loss(model)(params, batch, traced)
        return sums.loss / sums.weight, sums

    return jax.value_and_grad(mean, has_aux=True)(params)


def torch_log_probs(model: Any, pairs: Any) -> Any:
    found = []
    for each in (each for pair in pairs for each in pair):
        log_probs = torch.log_softmax(model(torch.tensor([each.ids])).logits[0], dim=-1)
        places = range(each.num_prompt_tokens, len(each.ids))
        found.append(sum(log_probs[place - 1, each.ids[place]] for place in places))
    return torch.stack(found).reshape(-1, 2)


def test_loss_and_gradient_equal_those_of_torch(policy):
    torch_model, model, params = policy
    pairs = make_pairs()
    reference = np.random.default_rng(1).normal(-20, 3, (3, 2)).astype(np.float32)
    (loss, sums), grads = loss_and_grad(model, params, batch_of(pairs, reference), BETA, SMOOTHING)
    ratios = torch_log_probs(torch_model, pairs) - torch.tensor(reference)
    logits = BETA * (ratios[:, 0] - ratios[:, 1])
    sigmoid = torch.nn.functional.logsigmoid
    expected = (-(1 - SMOOTHING) * sigmoid(logits) - SMOOTHING * sigmoid(-logits)).mean()
    torch_model.zero_grad()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    ours = grads["backbone"]["wte"]["embedding"]
    theirs = torch_model.transformer.wte.weight.grad.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.max(np.abs(theirs)))
    rewards = BETA * ratios.detach().numpy()
    wanted = {
        "rewards/chosen": rewards[:, 0].sum(),
        "rewards/rejected": rewards[:, 1].sum(),
        "rewards/margin": (rewards[:, 0] - rewards[:, 1]).sum(),
        "rewards/accuracy": float(np.sum(rewards[:, 0] > rewards[:, 1])),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(sums.metrics[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_loss_of_the_reference_itself_is_log_two_and_a_tie_is_half_right(policy):
    _, model, params = policy
    pairs = make_pairs()
    reference = jax.jit(partial(sequence_log_probs, model))(params, one_row_each(pairs))
    (loss, sums), grads = loss_and_grad(model, params, batch_of(pairs, reference), BETA, 0.0)
    assert float(loss) == pytest.approx(np.log(2), abs=1e-5)
    assert abs(float(sums.metrics["rewards/margin"])) < 1e-4
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(grads)) > 1e-3


def test_pairs_of_padding_count_nothing(policy):
    _, model, params = policy
    pairs, reference = make_pairs(2), np.full((2, 2), -20.0)
    (loss, sums), _ = loss_and_grad(model, params, batch_of(pairs, reference), BETA, 0.0)
    (padded_loss, padded_sums), _ = loss_and_grad(model, params, batch_of(pairs, reference, 1), BETA, 0.0)
    assert float(sums.weight) == float(padded_sums.weight) == 2
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-6)


def test_updates_raise_the_margin(policy):
    _, model, params = policy
    pairs = make_pairs()
    reference = jax.jit(partial(sequence_log_probs, model))(params, one_row_each(pairs))
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], batch_of(pairs, reference))
    algorithm = make_dpo(AdamWConfig(learning_rate=1e-3), DPOLossConfig(beta=BETA), model, num_updates=8)
    update, state = jax.jit(algorithm.update), algorithm.init(params)
    margins = []
    for _ in range(8):
        state, metrics = update(state, batch)
        margins.append(float(metrics["rewards/margin"]))
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert margins[-1] > 0.5
    assert float(metrics["rewards/accuracy"]) == 1.0
    assert float(metrics["loss/total"]) < np.log(2) - 0.1


@pytest.mark.parametrize(("field", "value"), [("beta", 0.0), ("label_smoothing", 0.5), ("label_smoothing", -0.1)])
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        DPOLossConfig(**{field: value})


def test_dpo_worked_by_hand():
    # z = 0.5 * (1 - (-1)) = 1
    loss = dpo_loss(jnp.array([1.0]), jnp.array([-1.0]), beta=0.5, label_smoothing=0.1)
    np.testing.assert_allclose(loss, [0.9 * np.log1p(np.exp(-1)) + 0.1 * np.log1p(np.exp(1))], rtol=1e-6)


def test_dpo_is_bradley_terry_on_the_rewards_that_the_policy_implies():
    chosen, rejected = jnp.array([0.3, -2.0, 5.0]), jnp.array([1.0, 0.5, -4.0])
    expected = bradley_terry_loss(0.2 * chosen, 0.2 * rejected)
    np.testing.assert_allclose(dpo_loss(chosen, rejected, beta=0.2), expected, rtol=1e-6)


def test_smoothed_dpo_is_least_where_the_policy_is_as_unsure_as_the_labels():
    gradient = jax.grad(lambda z: dpo_loss(z, 0.0 * z, beta=2.0, label_smoothing=0.2))
    np.testing.assert_allclose(gradient(jnp.log(4.0) / 2), 0.0, atol=1e-6)  # sigmoid(log 4) = 0.8
    assert gradient(jnp.array(0.0)) < 0 < gradient(jnp.array(2.0))
