"""Learning from preferences, on scores that are linear: losses by loops, accumulation, what is learned."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms import AdamWConfig, PreferenceBatch, make_reward_model
from jaxrl_lm.algorithms.reward_model import sum_preference_losses
from jaxrl_lm.core import calibration
from jaxrl_lm.errors import InputError

CONFIG = AdamWConfig(learning_rate=0.05, schedule="constant", warmup_fraction=0.0, weight_decay=0.0)
NUM_ANSWERS = {"pairwise": 2, "best_of_k": 4, "binary": 1}
objectives = pytest.mark.parametrize("objective", NUM_ANSWERS)


def score(params, inputs):
    return inputs["x"] @ params["w"] + params["b"]


def init_params():
    return {"w": jnp.array([0.3, -0.2, 0.1]), "b": jnp.array(0.2)}


def make_batch(objective, size=8, seed=0):
    """LabelledSet of answers whose worth is their first feature minus half of their second."""
    x = np.random.default_rng(seed).standard_normal((size, NUM_ANSWERS[objective], 3)).astype(np.float32)
    worth = x[..., 0] - 0.5 * x[..., 1]
    targets = worth[:, 0] > 0 if objective == "binary" else np.argmax(worth, axis=-1)
    return PreferenceBatch(inputs={"x": jnp.asarray(x)}, targets=jnp.asarray(targets, jnp.int32))


def accumulated(batch, parts):
    return jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), batch)


def loop_loss(objective, scores, target):
    if objective == "binary":
        return math.log1p(math.exp(-scores[0] if target else scores[0]))
    return math.log(sum(map(math.exp, scores))) - scores[target]


@objectives
def test_loss_equals_a_loop(objective):
    batch, params = make_batch(objective), init_params()
    sums = sum_preference_losses(objective, score, params, batch)
    scores = np.asarray(batch.inputs["x"]) @ np.asarray(params["w"]) + 0.2
    losses = [
        loop_loss(objective, row.tolist(), int(y)) for row, y in zip(scores, np.asarray(batch.targets), strict=True)
    ]
    assert float(sums.loss) == pytest.approx(sum(losses), rel=1e-5)
    assert float(sums.weight) == len(losses)
    right = [
        (row[0] > 0) == y if objective == "binary" else np.argmax(row) == y
        for row, y in zip(scores, np.asarray(batch.targets), strict=True)
    ]
    assert float(sums.metrics["accuracy/batch"]) == sum(right)
    assert float(sums.metrics["score/mean"]) / len(losses) == pytest.approx(np.mean(scores), abs=1e-6)
    assert float(sums.metrics["score/mean_square"]) / len(losses) == pytest.approx(np.mean(scores**2), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "scores", "targets", "right"),
    [
        ("pairwise", [[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]], [0, 0, 1], 2.0),
        ("best_of_k", [[3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 2.0, 0.0], [1.0, 2.0, 2.0, 0.0]], [0, 2, 0], 0.75),
        ("binary", [[0.0], [0.0], [-1.0]], [0, 0, 0], 2.0),
    ],
)
def test_a_tie_among_n_best_answers_counts_one_nth(objective, scores, targets, right):
    batch = PreferenceBatch(inputs=jnp.array(scores), targets=jnp.array(targets, jnp.int32))
    sums = sum_preference_losses(objective, lambda _, inputs: inputs, None, batch)
    assert float(sums.metrics["accuracy/batch"]) == right
    if objective != "binary":
        assert calibration.choice_confidence(np.array(scores), np.array(targets))[1].sum() == right


def test_pairwise_is_best_of_two():
    batch, params = make_batch("pairwise"), init_params()
    pairwise, best = (
        float(sum_preference_losses(name, score, params, batch).loss) for name in ("pairwise", "best_of_k")
    )
    assert pairwise == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("objective", ["pairwise", "best_of_k"])
def test_order_of_the_answers_does_not_matter(objective):
    batch, params = make_batch(objective), init_params()
    flipped = PreferenceBatch(
        inputs={"x": batch.inputs["x"][:, ::-1]}, targets=NUM_ANSWERS[objective] - 1 - batch.targets
    )
    losses = [float(sum_preference_losses(objective, score, params, each).loss) for each in (batch, flipped)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@objectives
def test_accumulated_batches_make_the_update_of_the_whole(objective):
    algorithm = make_reward_model(objective, CONFIG, score, num_updates=5)
    update = jax.jit(algorithm.update)
    batch = make_batch(objective)
    whole, whole_metrics = update(algorithm.init(init_params()), accumulated(batch, 1))
    parts, part_metrics = update(algorithm.init(init_params()), accumulated(batch, 4))
    # Choices do not determine the level: its gradient is rounding, of which Adam makes a whole step.
    for name in ("w", "b") if objective == "binary" else ("w",):
        np.testing.assert_allclose(parts.params[name], whole.params[name], rtol=1e-5, atol=1e-6)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(part_metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@objectives
def test_learns_what_the_labels_follow(objective):
    algorithm = make_reward_model(objective, CONFIG, score, num_updates=200)
    update = jax.jit(algorithm.update, donate_argnums=0)
    state = algorithm.init(init_params())
    for seed in range(200):
        state, metrics = update(state, accumulated(make_batch(objective, 64, seed), 1))
    held_out = make_batch(objective, 500, seed=1000)
    sums = sum_preference_losses(objective, score, state.params, held_out)
    assert float(sums.metrics["accuracy/batch"]) / 500 > 0.95
    weights = np.asarray(state.params["w"])
    assert weights[0] > 1
    assert weights[1] / weights[0] == pytest.approx(-0.5, abs=0.1)
    assert abs(weights[2] / weights[0]) < 0.1
    assert all(np.isfinite(value) for value in metrics.values())


def test_choices_do_not_move_the_level_of_the_scores():
    gradient = jax.grad(lambda p: sum_preference_losses("best_of_k", score, p, make_batch("best_of_k")).loss)
    np.testing.assert_allclose(gradient(init_params())["b"], 0.0, atol=1e-6)
    gradient = jax.grad(lambda p: sum_preference_losses("binary", score, p, make_batch("binary")).loss)
    assert abs(float(gradient(init_params())["b"])) > 0.1


@pytest.mark.parametrize(
    ("objective", "given"),
    [("pairwise", "best_of_k"), ("pairwise", "binary"), ("best_of_k", "binary"), ("binary", "pairwise")],
)
def test_labels_of_another_kind_are_refused(objective, given):
    with pytest.raises(InputError, match=f"objective='{objective}' learns from"):
        sum_preference_losses(objective, score, init_params(), make_batch(given))
