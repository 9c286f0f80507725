"""A policy that is a table, trajectories made up at random, and updates compiled once for many tests."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.algorithms import PPOConfig, PPOHyperparams, PPOState, make_ppo
from jaxrl_lm.types import ActionEvaluation, Metrics, Trajectory

NUM_STATES = 6
NUM_ACTIONS = 3
BATCH, NUM_STEPS = 8, 5
KEY = jax.random.key(0)

# The programs of these tests run for microseconds; compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}


def init_params(seed: int = 0) -> dict[str, jax.Array]:
    """Logits `[S, A]` of a softmax policy and a value for each state."""
    rng = np.random.default_rng(seed)
    return {
        "logits": jnp.asarray(rng.normal(size=(NUM_STATES, NUM_ACTIONS)), jnp.float32),
        "values": jnp.asarray(rng.normal(size=NUM_STATES), jnp.float32),
    }


def evaluate(
    params: Mapping[str, jax.Array], observations: Any, actions: Any, temperature: Any = 1.0
) -> ActionEvaluation:
    """The table's `evaluate`; observations are states, int `[B, T]`."""
    log_pi = jax.nn.log_softmax(params["logits"][observations] / temperature)
    return ActionEvaluation(
        log_probs=jnp.take_along_axis(log_pi, actions[..., None], axis=-1)[..., 0],
        entropies=-jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1),
        values=params["values"][observations],
    )


score = jax.jit(evaluate)


def make_masks(rng: np.random.Generator, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of random lengths, some with a hole, and values that count one step longer."""
    lengths = rng.integers(1, NUM_STEPS + 1, size=batch)[:, None]
    steps = np.arange(NUM_STEPS)
    is_hole = (np.arange(batch)[:, None] % 3 == 1) & (steps == 1) & (lengths > 2)
    return (steps < lengths) & ~is_hole, (steps < lengths + 1) & ~is_hole


def make_trajectory(*, seed: int = 0, batch: int = BATCH, is_masked: bool = True, noise: float = 0.0) -> Trajectory:
    """Random steps with episode ends in their midst; log-probs and values are those of `init_params()`.

    `noise` is the standard deviation of what is added to log-probs and values: the steps are then another
    policy's, and ratios and values leave the range that is not clipped.
    """
    rng = np.random.default_rng(seed + 100)
    shape = (batch, NUM_STEPS)
    observations = jnp.asarray(rng.integers(0, NUM_STATES, size=shape))
    actions = jnp.asarray(rng.integers(0, NUM_ACTIONS, size=shape))
    evaluation = score(init_params(), observations, actions)
    mask, value_mask = make_masks(rng, batch) if is_masked else (np.ones(shape), np.ones(shape))
    is_end = rng.random(shape) < 0.15
    columns = {
        "log_probs": np.asarray(evaluation.log_probs) + noise * rng.normal(size=shape),
        "values": np.asarray(evaluation.values) + noise * rng.normal(size=shape),
        "rewards": 2.0 + rng.normal(size=shape),
        "discounts": np.where(is_end, 0.0, 0.9),
        "traces": np.where(is_end, 0.0, 0.8),
        "next_values": rng.normal(size=shape),
        "mask": mask,
        "value_mask": value_mask,
    }
    floats = {name: jnp.asarray(column, jnp.float32) for name, column in columns.items()}
    return Trajectory(observations=observations, actions=actions, **floats)


@cache
def _jitted_update(config: PPOConfig) -> Any:
    return jax.jit(make_ppo(config, evaluate).update, compiler_options=QUICK)


def jitted_update(config: PPOConfig) -> Any:
    """The update of the table; configurations that differ in traced settings alone share one program."""
    defaults = PPOConfig()
    return _jitted_update(replace(config, **{f.name: getattr(defaults, f.name) for f in fields(PPOHyperparams)}))


def run(config: PPOConfig, trajectory: Trajectory, *, num_updates: int = 1) -> tuple[PPOState, Metrics]:
    """Some updates on one trajectory, from `init_params()`."""
    update = jitted_update(config)
    state, metrics = make_ppo(config, evaluate).init(init_params(), KEY), {}
    for key in jax.random.split(KEY, num_updates):
        state, metrics = update(state, trajectory, key)
    return state, metrics


def assert_trees_close(actual: Any, expected: Any, *, atol: float = 0.0) -> None:
    """Every leaf within `atol` of its counterpart; NaN is equal to nothing."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    compare = partial(np.testing.assert_allclose, rtol=0.0, atol=atol, equal_nan=False)
    jax.tree.map(compare, actual, expected)


def largest_difference(a: Any, b: Any) -> float:
    """Largest |a - b| over all leaves."""
    return max(float(np.max(np.abs(x - y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
