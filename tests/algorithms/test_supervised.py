"""The supervised update: AdamW, schedules, clipping and accumulation against torch and loops."""

import math
from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxrl_lm.algorithms.supervised import AdamWConfig, LossSums, make_supervised, mean_gradient, rate_schedule
from jaxrl_lm.errors import InputError

NUM_UPDATES = 6


def init_params() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "matrix": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
        "vector": jnp.asarray(rng.normal(size=2), jnp.float32),
    }


def squared_error(params: Any, batch: Any, scale: Any) -> LossSums:
    """Of a linear model, over the outputs that count."""
    errors = jnp.square(batch["x"] @ params["matrix"] + params["vector"] - batch["y"]) * batch["mask"]
    return LossSums(scale * jnp.sum(errors), jnp.sum(batch["mask"]), {"loss/largest_error": jnp.sum(errors)})


def make_batch(*shape: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = (rng.random((*shape, 2)) < 0.6).astype(np.float32)
    return {
        "x": rng.normal(size=(*shape, 3)).astype(np.float32),
        "y": rng.normal(size=(*shape, 2)).astype(np.float32),
        "mask": mask,
    }


def torch_training(config: AdamWConfig, batches: list[dict[str, np.ndarray]], rates: list[float]) -> dict[str, Any]:
    params = {name: torch.tensor(np.asarray(p), requires_grad=True) for name, p in init_params().items()}
    groups = [
        {"params": [params["matrix"]], "weight_decay": config.weight_decay},
        {"params": [params["vector"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(config.b1, config.b2), eps=config.epsilon)
    for batch, rate in zip(batches, rates, strict=True):
        x, y, mask = (torch.tensor(batch[name].reshape(-1, batch[name].shape[-1])) for name in ("x", "y", "mask"))
        loss = (((x @ params["matrix"] + params["vector"] - y) ** 2) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(params.values()), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def test_updates_equal_those_of_torch_with_accumulation_clipping_warmup_and_decay_on_matrices_only():
    config = AdamWConfig(
        learning_rate=0.1, schedule="linear", warmup_fraction=0.34, weight_decay=0.3, max_grad_norm=0.5
    )
    algorithm = make_supervised(config, squared_error, num_updates=NUM_UPDATES, loss_hyperparams=1.0)
    update, state = jax.jit(algorithm.update), algorithm.init(init_params())
    batches = [make_batch(3, 4, seed=seed) for seed in range(NUM_UPDATES)]
    rates = [0.1 / 3, 0.2 / 3, 0.1, 0.075, 0.05, 0.025]
    for batch, rate in zip(batches, rates, strict=True):
        state, metrics = update(state, batch)
        assert metrics["learning_rate"] == pytest.approx(rate, rel=1e-6)
        assert metrics["loss/grad_norm"] > config.max_grad_norm, "clipping must matter in this test"
    chex.assert_trees_all_close(state.params, torch_training(config, batches, rates), rtol=2e-5, atol=1e-6)


def test_an_accumulated_batch_is_a_mean_over_all_it_holds_and_not_a_mean_of_means():
    batch = make_batch(2, 4)
    batch["mask"][0] = 0
    batch["mask"][0, 0, 0] = 1  # one output in the first part, many in the second
    batch["mask"][1] = 1
    whole = jax.tree.map(lambda x: x.reshape(1, 8, -1), batch)
    grads, metrics = mean_gradient(squared_error, init_params(), batch, 1.0)
    expected, expected_metrics = mean_gradient(squared_error, init_params(), whole, 1.0)
    chex.assert_trees_all_close((grads, metrics), (expected, expected_metrics), rtol=1e-5)
    parts = [
        mean_gradient(squared_error, init_params(), {name: x[part] for name, x in batch.items()}, 1.0)
        for part in (slice(0, 1), slice(1, 2))
    ]
    of_means = jax.tree.map(lambda *g: sum(g) / 2, *(grads for grads, _ in parts))
    assert np.max(np.abs(of_means["matrix"] - grads["matrix"])) > 0.1


def test_a_batch_without_weight_moves_nothing_but_the_decay():
    algorithm = make_supervised(
        AdamWConfig(learning_rate=0.5, schedule="constant", warmup_fraction=0.0, weight_decay=0.1),
        squared_error,
        num_updates=1,
        loss_hyperparams=1.0,
    )
    batch = {name: np.zeros_like(part) for name, part in make_batch(1, 4).items()}
    state, metrics = algorithm.update(algorithm.init(init_params()), batch)
    assert metrics["loss/total"] == 0
    np.testing.assert_array_equal(state.params["vector"], init_params()["vector"])
    np.testing.assert_allclose(state.params["matrix"], 0.95 * init_params()["matrix"], rtol=1e-6)


def test_a_longest_gradient_of_zero_clips_nothing():
    steps = {}
    for longest in (0.0, 1e6):
        algorithm = make_supervised(
            AdamWConfig(max_grad_norm=longest), squared_error, num_updates=3, loss_hyperparams=1.0
        )
        steps[longest], _ = algorithm.update(algorithm.init(init_params()), make_batch(1, 4))
    chex.assert_trees_all_equal(steps[0.0].params, steps[1e6].params)
    assert not np.array_equal(steps[0.0].params["matrix"], init_params()["matrix"])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_rise_and_fall_as_worked_by_hand(schedule):
    rates = rate_schedule(AdamWConfig(schedule=schedule, warmup_fraction=0.25), 12)
    falling = {
        "cosine": [0.5 + 0.5 * math.cos(math.pi * k / 9) for k in range(10)],
        "linear": [1 - k / 9 for k in range(10)],
        "constant": [1.0] * 10,
    }[schedule]
    np.testing.assert_allclose([rates(k) for k in range(13)], [0.25, 0.5, 0.75, *falling], rtol=1e-6, atol=1e-7)


def test_a_sweep_over_traced_settings_equals_separate_runs():
    algorithm = make_supervised(AdamWConfig(), squared_error, num_updates=3, loss_hyperparams=1.0)
    batch = make_batch(2, 4)

    def start(rate: Any, decay: Any, longest: Any, scale: Any) -> Any:
        state = algorithm.init(init_params())
        traced = replace(
            state.hyperparams, learning_rate=rate, weight_decay=decay, max_grad_norm=longest, loss=jnp.asarray(scale)
        )
        return replace(state, hyperparams=traced)

    settings = [np.array(each, np.float32) for each in ([1e-3, 1e-1], [0.0, 0.5], [0.1, 0.0], [1.0, 2.0])]
    together, metrics = jax.vmap(algorithm.update, in_axes=(0, None))(jax.vmap(start)(*settings), batch)
    for index in (0, 1):
        alone, _ = algorithm.update(start(*(jnp.asarray(each[index]) for each in settings)), batch)
        for name, param in alone.params.items():
            np.testing.assert_allclose(together.params[name][index], param, rtol=0, atol=1e-6, err_msg=name)
    assert metrics["loss/total"][1] == pytest.approx(2 * float(metrics["loss/total"][0]), rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", 0.0), ("warmup_fraction", 1.0), ("weight_decay", -0.1), ("b2", 1.0)],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        AdamWConfig(**{field: value})
