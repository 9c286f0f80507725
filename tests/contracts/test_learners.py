"""What every learner of both halves must do: in environments, from trajectories, answers, examples and preferences."""

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms import ALGORITHMS
from jaxrl_lm.types import PyTree
from tests.algorithms.fixtures import QUICK, largest_difference
from tests.contracts.learners import BATCHES, CASES, ONLINE, SUPERVISED, TRAINERS, Case, online_case

every_learner = pytest.mark.parametrize("name", CASES)
# Running an environment's program op by op takes seconds, and what is in its update is compiled either way.
outside_environments = pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("train-")])
with_learning_rate = pytest.mark.parametrize("name", [name for name in CASES if name.startswith("trajectories-")])


@cache
def build(name: str) -> tuple[Case, Any]:
    """A learner, and its update compiled with the state donated, as the trainers do."""
    case = CASES[name]()
    return case, jax.jit(case.update, donate_argnums=0, compiler_options=QUICK)


@cache
def two_updates(name: str, other: int = 0) -> tuple[PyTree, Any]:
    case, update = build(name)
    state, _ = update(case.start(), *case.args(1))
    return update(state, *case.args(2 + other))


def arrays(tree: PyTree) -> list[np.ndarray]:
    """All leaves as NumPy arrays, keys as their numbers."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in jax.tree.leaves(tree)]


def test_every_algorithm_is_here():
    assert {*ONLINE, *SUPERVISED, *(f"train-{name}" for name in TRAINERS)} <= CASES.keys()
    assert SUPERVISED.keys() == BATCHES.keys()
    assert {f"trajectories-{name}" for name in ALGORITHMS} <= CASES.keys()


@every_learner
def test_updates_move_the_parameters_stay_finite_and_keep_every_shape_and_dtype(name):
    case, _ = build(name)
    state, metrics = two_updates(name)
    start = case.start()
    if hasattr(start, "params") or name in ONLINE:
        chex.assert_tree_all_finite(case.params(state))
        assert largest_difference(case.params(state), case.params(start)) > 1e-5
    else:
        assert any(not np.array_equal(new, old) for new, old in zip(arrays(state), arrays(start), strict=True))
    assert all(metric.shape == () for metric in metrics.values())
    assert all(np.isfinite(value) for key, value in metrics.items() if not key.startswith("episode/"))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
    assert all(leaf.dtype != np.float64 for leaf in arrays(state))


@outside_environments
def test_compiled_equals_uncompiled(name):
    case, update = build(name)
    compiled = update(case.start(), *case.args(1))
    uncompiled = case.update(case.start(), *case.args(1))
    for new, old in zip(arrays(compiled), arrays(uncompiled), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)


@every_learner
def test_an_update_is_a_function_of_its_arguments(name):
    case, update = build(name)
    state, _ = update(case.start(), *case.args(1))
    again = update(state, *case.args(2))
    assert all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(arrays, (again, two_updates(name))), strict=True)
    )


@pytest.mark.parametrize("name", ["trajectories-ppo", "trajectories-ppo-steps", *ONLINE])
def test_the_key_decides_the_order_of_minibatches(name):
    case, update = build(name)
    *args, _ = case.args(1)
    first, *others = (case.params(update(case.start(), *args, jax.random.key(number))[0]) for number in range(4))
    assert max(largest_difference(first, other) for other in others) > 1e-7


@pytest.mark.parametrize("name", ONLINE)
def test_completions_are_learned_from_in_micro_batches(name):
    """Completions have different lengths, so means of micro-batches would weigh them differently."""
    case, update = build(name)
    state, metrics = update(case.start(), *case.args(1))
    smaller = jax.jit(online_case(name, micro_batch_size=1).update, compiler_options=QUICK)
    other_state, other_metrics = smaller(case.start(), *case.args(1))
    chex.assert_trees_all_close(case.params(other_state), case.params(state), rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(other_metrics, metrics, rtol=1e-4, atol=1e-5)
    assert largest_difference(case.params(state), case.params(case.start())) > 1e-4


@every_learner
def test_a_donated_state_is_used_up(name):
    case, update = build(name)
    state = case.start()
    update(state, *case.args(1))
    params = jax.tree.leaves(case.params(state)) if hasattr(state, "params") or name in ONLINE else []
    assert all(leaf.is_deleted() for leaf in params)
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@outside_environments
def test_it_is_traced_once_and_from_shapes_alone(name):
    case, _ = build(name)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(case.update, n=1))
    state, args = jax.eval_shape(lambda *given: given, case.start(), case.args(1))
    lowered = update.lower(state, *args)
    new_state, _ = lowered.out_info
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


@outside_environments
def test_wider_defaults_change_no_dtype(name):
    case, _ = build(name)
    start = case.start()
    with jax.enable_x64(True):
        wide_start = jax.eval_shape(case.start)
        new_state, metrics = jax.eval_shape(case.update, start, *case.args(1))
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, start)
    chex.assert_trees_all_equal_shapes_and_dtypes(wide_start, start)
    assert all(metric.dtype != np.float64 for metric in metrics.values())


@with_learning_rate
def test_a_sweep_of_learning_rates_equals_separate_runs(name):
    case, update = build(name)
    rates = np.array([1e-4, 1e-2], np.float32)

    def start(rate: Any) -> PyTree:
        def put(path: Any, leaf: Any) -> Any:
            return jnp.asarray(rate) if getattr(path[-1], "name", "") == "learning_rate" else leaf

        return jax.tree_util.tree_map_with_path(put, case.start())

    args = case.args(1)
    swept = jax.jit(jax.vmap(case.update, in_axes=(0, *(None for _ in args))), compiler_options=QUICK)
    together = case.params(swept(jax.vmap(start)(rates), *args)[0])
    alone = [case.params(update(start(rate), *args)[0]) for rate in rates]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    for new, old in zip(arrays(together), arrays(stacked), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-6)
    assert largest_difference(*alone) > 1e-3
