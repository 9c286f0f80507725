"""A policy that is a table, and trajectories made up at random, for tests of the algorithms."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.types import ActionEvaluation, Trajectory

NUM_STATES = 6
NUM_ACTIONS = 3


def init_params(seed: int = 0) -> dict[str, jax.Array]:
    """Logits `[S, A]` of a softmax policy and a value for each state."""
    rng = np.random.default_rng(seed)
    return {
        "logits": jnp.asarray(rng.normal(size=(NUM_STATES, NUM_ACTIONS)), jnp.float32),
        "values": jnp.asarray(rng.normal(size=NUM_STATES), jnp.float32),
    }


def evaluate(
    params: Mapping[str, jax.Array], observations: Any, actions: Any, *, temperature: float = 1.0
) -> ActionEvaluation:
    """The table's `evaluate`; observations are states, int `[B, T]`."""
    log_pi = jax.nn.log_softmax(params["logits"][observations] / temperature)
    return ActionEvaluation(
        log_probs=jnp.take_along_axis(log_pi, actions[..., None], axis=-1)[..., 0],
        entropies=-jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1),
        values=params["values"][observations],
    )


def make_masks(rng: np.random.Generator, batch: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of random lengths, some with a hole, and values that count one step longer."""
    lengths = rng.integers(1, num_steps + 1, size=batch)
    steps = np.arange(num_steps)
    mask = (steps < lengths[:, None]).astype(np.float32)
    value_mask = (steps < lengths[:, None] + 1).astype(np.float32)
    is_hole = (np.arange(batch)[:, None] % 3 == 1) & (steps == 1) & (lengths[:, None] > 2)
    return np.where(is_hole, 0.0, mask), np.where(is_hole, 0.0, value_mask)


def make_trajectory(
    params: Mapping[str, jax.Array],
    *,
    seed: int = 0,
    batch: int = 8,
    num_steps: int = 5,
    is_masked: bool = True,
    log_prob_noise: float = 0.0,
) -> Trajectory:
    """Random steps with episode ends in their midst, and log-probs and values as the policy has them.

    `log_prob_noise` is the standard deviation of what is added to log-probs and values: the trajectory is then one
    of another policy, and ratios and values reach the clipped ranges.
    """
    rng = np.random.default_rng(seed + 100)
    shape = (batch, num_steps)
    observations = rng.integers(0, NUM_STATES, size=shape)
    actions = rng.integers(0, NUM_ACTIONS, size=shape)
    evaluation = jax.jit(evaluate)(params, observations, actions)
    mask, value_mask = make_masks(rng, *shape) if is_masked else (np.ones(shape), np.ones(shape))
    is_end = rng.random(shape) < 0.15
    fields = {
        "log_probs": evaluation.log_probs + log_prob_noise * rng.normal(size=shape),
        "values": evaluation.values + log_prob_noise * rng.normal(size=shape),
        "rewards": 2.0 + rng.normal(size=shape),
        "discounts": np.where(is_end, 0.0, 0.9),
        "traces": np.where(is_end, 0.0, 0.8),
        "next_values": rng.normal(size=shape),
        "mask": mask,
        "value_mask": value_mask,
    }
    return Trajectory(
        observations=jnp.asarray(observations),
        actions=jnp.asarray(actions),
        **{name: jnp.asarray(value, jnp.float32) for name, value in fields.items()},
    )


def assert_trees_close(actual: Any, expected: Any, *, atol: float = 0.0) -> None:
    """Every leaf within `atol` of its counterpart; NaN is equal to nothing."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.0, atol=atol, equal_nan=False), actual, expected)


def largest_difference(a: Any, b: Any) -> float:
    """Largest |a - b| over all leaves."""
    return max(float(np.max(np.abs(x - y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
