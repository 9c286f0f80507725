"""What every algorithm in `ALGORITHMS` must do, on a policy that is a table."""

from dataclasses import replace
from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms import ALGORITHMS
from jaxrl_lm.types import Algorithm, Metrics, PyTree
from tests.algorithms.fixtures import (
    QUICK,
    assert_trees_close,
    evaluate,
    init_params,
    largest_difference,
    make_trajectory,
)

KEY, OTHER_KEY = jax.random.split(jax.random.key(7))
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "ppo": [
        {"learning_rate": 3e-3, "num_epochs": 2, "num_minibatches": 4},
        {
            "learning_rate": 3e-3,
            "num_epochs": 2,
            "num_minibatches": 2,
            "minibatch_unit": "steps",
            "value_loss": "huber",
            "adam": "tensorflow",
            "whiten_rewards": True,
            "anneal_updates": 10,
        },
    ],
}
CASES = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name, settings in SETTINGS.items()
    for number in range(len(settings))
]
every_case = pytest.mark.parametrize(("name", "number"), CASES)


@cache
def build(name: str, number: int) -> tuple[Algorithm, Any]:
    """An algorithm, and its update compiled with the state donated, as the trainers do."""
    make_config, make = ALGORITHMS[name]
    algorithm = make(make_config(**SETTINGS[name][number]), evaluate)
    return algorithm, jax.jit(algorithm.update, donate_argnums=0, compiler_options=QUICK)


def two_updates(name: str, number: int, key: jax.Array) -> tuple[PyTree, Metrics]:
    algorithm, update = build(name, number)
    state = algorithm.init(init_params(), KEY)
    state, _ = update(state, make_trajectory(noise=0.1), jax.random.fold_in(key, 0))
    return update(state, make_trajectory(seed=1, noise=0.1), jax.random.fold_in(key, 1))


def test_every_algorithm_has_settings_here():
    assert SETTINGS.keys() == ALGORITHMS.keys()


@every_case
def test_two_updates_move_the_parameters_and_stay_finite(name, number):
    state, metrics = two_updates(name, number, KEY)
    chex.assert_tree_all_finite((state.params, state.optimizer, metrics))
    assert largest_difference(state.params, init_params()) > 1e-4
    assert all(metric.shape == () for metric in metrics.values())
    chex.assert_trees_all_equal_shapes_and_dtypes(state.params, init_params())


@every_case
def test_compiled_equals_uncompiled(name, number):
    algorithm, update = build(name, number)
    trajectory = make_trajectory(noise=0.1)
    compiled = update(algorithm.init(init_params(), KEY), trajectory, KEY)
    uncompiled = algorithm.update(algorithm.init(init_params(), KEY), trajectory, KEY)
    assert_trees_close(compiled, uncompiled, atol=1e-6)


@every_case
def test_the_key_alone_decides(name, number):
    results = [two_updates(name, number, key) for key in (KEY, KEY, OTHER_KEY)]
    assert_trees_close(results[0], results[1])
    assert largest_difference(results[0][0].params, results[2][0].params) > 1e-7


@every_case
def test_a_donated_state_is_used_up(name, number):
    algorithm, update = build(name, number)
    state = algorithm.init(init_params(), KEY)
    update(state, make_trajectory(), KEY)
    moved = (state.params, state.optimizer, state.num_updates)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(moved))


@every_case
def test_repeated_calls_trace_once(name, number):
    algorithm, _ = build(name, number)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(algorithm.update, n=1), compiler_options=QUICK)
    state = algorithm.init(init_params(), KEY)
    for seed in range(3):
        state, _ = update(state, make_trajectory(seed=seed), jax.random.key(seed))
    assert int(state.num_updates) == 3


@every_case
def test_a_sweep_of_learning_rates_equals_separate_runs(name, number):
    algorithm, update = build(name, number)
    rates, trajectory = np.array([1e-4, 1e-3, 1e-2], np.float32), make_trajectory(noise=0.1)

    def start(rate: Any) -> PyTree:
        state = algorithm.init(init_params(), KEY)
        return replace(state, hyperparams=replace(state.hyperparams, learning_rate=jnp.asarray(rate)))

    in_axes = (0, None, None)
    swept = jax.jit(jax.vmap(algorithm.update, in_axes=in_axes), compiler_options=QUICK)
    together = swept(jax.vmap(start)(rates), trajectory, KEY)
    one_by_one = [update(start(rate), trajectory, KEY) for rate in rates]
    assert_trees_close(together, jax.tree.map(lambda *x: jnp.stack(x), *one_by_one), atol=1e-6)
    assert largest_difference(one_by_one[0][0].params, one_by_one[2][0].params) > 1e-3
