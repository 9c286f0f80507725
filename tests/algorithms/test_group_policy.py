"""Learning from groups of answers: loss and gradient against a loop over answers, and the two weightings."""

from dataclasses import replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms.group_policy import (
    AnswerBatch,
    GroupPolicyConfig,
    GroupPolicyHyperparams,
    group_loss,
    weighted,
)
from jaxrl_lm.errors import InputError
from tests.algorithms.fixtures import QUICK, evaluate, init_params, make_trajectory

CLIP, BETA = 0.2, 0.3
HYPERPARAMS = GroupPolicyHyperparams(learning_rate=0.0, clip_range=CLIP, kl_coefficient=BETA)


def make_batch(noise: float = 0.3) -> AnswerBatch:
    """Answers of several lengths by another policy than the one that learns, and a third as the reference."""
    trajectory = make_trajectory(noise=noise)
    rng = np.random.default_rng(2)
    return AnswerBatch(
        observations=trajectory.observations,
        actions=trajectory.actions,
        log_probs=trajectory.log_probs,
        reference_log_probs=trajectory.log_probs + rng.normal(0, 0.5, trajectory.log_probs.shape).astype(np.float32),
        advantages=jnp.asarray(rng.normal(size=(len(trajectory.mask), 1)), jnp.float32),
        mask=trajectory.mask,
    )


@partial(jax.jit, static_argnames="token_weight", compiler_options=QUICK)
def loss_and_grad(params: Any, batch: AnswerBatch, token_weight: str) -> Any:
    rows = weighted(batch, token_weight=token_weight)
    return jax.value_and_grad(group_loss, has_aux=True)(params, evaluate, rows, HYPERPARAMS)


def loop_loss(params: Any, batch: AnswerBatch, token_weight: str) -> Any:
    log_probs = evaluate(params, batch.observations, batch.actions).log_probs
    total = 0.0
    for row, keep in enumerate(np.asarray(batch.mask, bool)):
        losses = []
        for step in np.flatnonzero(keep):
            ratio = jnp.exp(log_probs[row, step] - batch.log_probs[row, step])
            gain = batch.advantages[row, 0]
            pushed = jnp.minimum(gain * ratio, gain * jnp.clip(ratio, 1 - CLIP, 1 + CLIP))
            apart = batch.reference_log_probs[row, step] - log_probs[row, step]
            losses.append(-pushed + BETA * (jnp.exp(apart) - 1 - apart))
        total += sum(losses) / (len(losses) if token_weight == "mean" else 1)
    return total / len(batch.mask)


@pytest.mark.parametrize("token_weight", ["sum", "mean"])
def test_loss_and_gradient_equal_those_of_a_loop(token_weight):
    batch, params = make_batch(), init_params()
    (loss, metrics), grads = loss_and_grad(params, batch, token_weight)
    looped = jax.value_and_grad(partial(loop_loss, batch=batch, token_weight=token_weight))
    expected, expected_grads = jax.jit(looped, compiler_options=QUICK)(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grads["logits"], expected_grads["logits"], rtol=1e-4, atol=1e-6)
    assert metrics["ratio/clip_fraction"] > 0, "some steps must be clipped"


def test_at_the_acting_policy_the_summed_gradient_is_that_of_reinforce():
    batch, params = make_batch(noise=0.0), init_params()
    batch = batch._replace(reference_log_probs=batch.log_probs)

    def reinforce(params: Any) -> Any:
        log_probs = evaluate(params, batch.observations, batch.actions).log_probs
        of_answers = jnp.sum(jnp.where(batch.mask, log_probs, 0.0), axis=-1)
        return -jnp.mean(batch.advantages[:, 0] * of_answers)

    (_, metrics), grads = loss_and_grad(params, batch, "sum")
    np.testing.assert_allclose(grads["logits"], jax.grad(reinforce)(params)["logits"], rtol=1e-4, atol=1e-6)
    assert abs(float(metrics["loss/kl"])) < 1e-6


def test_masked_steps_do_not_matter():
    batch, params = make_batch(), init_params()
    spoiled = batch._replace(
        log_probs=jnp.where(batch.mask, batch.log_probs, jnp.nan),
        reference_log_probs=jnp.where(batch.mask, batch.reference_log_probs, jnp.inf),
    )
    results = [loss_and_grad(params, each, "mean") for each in (batch, spoiled)]
    chex.assert_trees_all_equal(*results)


def test_descent_raises_what_was_better_and_the_penalty_pulls_back():
    batch = make_batch(noise=0.0)
    batch = batch._replace(reference_log_probs=batch.log_probs)
    rows, moved = weighted(batch, token_weight="mean"), {}
    for beta in (0.0, 10.0):
        hyperparams = replace(HYPERPARAMS, clip_range=10.0, kl_coefficient=beta)
        grad = jax.jit(
            jax.grad(lambda params, traced: group_loss(params, evaluate, rows, traced), has_aux=True),
            compiler_options=QUICK,
        )
        params = init_params()
        for _ in range(20):
            grads, metrics = grad(params, hyperparams)
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
        log_probs = evaluate(params, batch.observations, batch.actions).log_probs
        gain = jnp.sum(jnp.where(batch.mask, log_probs - batch.log_probs, 0.0) * batch.advantages)
        moved[beta] = (float(gain), float(metrics["loss/kl"]))
    assert moved[0.0][0] > 1.0
    assert moved[10.0][1] < 0.5 * moved[0.0][1]


@pytest.mark.parametrize(("field", "value"), [("learning_rate", 0.0), ("num_epochs", 0), ("clip_range", 0.0)])
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        GroupPolicyConfig(**{field: value})
