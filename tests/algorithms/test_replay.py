"""The replay memory: what it keeps, what it draws and how often, and n-step windows against loops."""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.algorithms import replay as memory
from jaxrl_lm.algorithms.replay import (
    ReplayConfig,
    Step,
    add,
    init_replay,
    priorities_of,
    sample,
    set_priorities,
)
from jaxrl_lm.errors import InputError

NUM_ENVS = 3
GAMMA = 0.5


NONE = np.zeros(NUM_ENVS, bool)


def step_at(time, terminated=NONE, truncated=NONE):
    """Step number `time` of each environment; every number in it says which."""
    name = 10 * time + np.arange(NUM_ENVS)
    return Step(
        observations=name.astype(np.uint8),
        actions=name.astype(np.int32),
        rewards=name.astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        next_observations=(name + 5).astype(np.uint8),
    )


add_jit = jax.jit(add, static_argnums=0)
sample_jit = jax.jit(sample, static_argnums=(0, 3))
set_leaves_jit = jax.jit(memory._set_leaves)
set_slot_jit = jax.jit(memory._set_slot, static_argnums=2)


def filled(config, num_steps, ends=lambda time: (NONE, NONE)):
    replay = jax.tree.map(jnp.asarray, init_replay(config, step_at(0)))
    for time in range(num_steps):
        replay = add_jit(config, replay, step_at(time, *ends(time)))
    return replay


@pytest.mark.parametrize("is_prioritized", [False, True])
@pytest.mark.parametrize(("num_added", "num_steps"), [(2, 1), (4, 3), (5, 1), (13, 1), (13, 3), (10, 5)])
def test_every_complete_window_is_drawn_and_no_other(num_added, num_steps, is_prioritized):
    config = ReplayConfig(buffer_size=5 * NUM_ENVS + 1, num_steps=num_steps, is_prioritized=is_prioritized)
    batch = sample_jit(config, filled(config, num_added), jax.random.key(0), 1000, GAMMA)
    starts = range(max(0, num_added - 5), num_added - num_steps + 1)
    assert set(np.asarray(batch.actions).tolist()) == {10 * t + env for t in starts for env in range(NUM_ENVS)}


@pytest.mark.parametrize("is_prioritized", [False, True])
def test_a_full_memory_counts_nothing_that_could_overflow(is_prioritized):
    """A count of all slots ever written would turn negative after 2^31, and draw one transition for ever."""
    config = ReplayConfig(buffer_size=5 * NUM_ENVS, num_steps=2, is_prioritized=is_prioritized)
    counters = [
        [int(leaf) for leaf in jax.tree.leaves(filled(config, num_added)) if leaf.shape == ()]
        for num_added in (7, 12, 17)
    ]
    assert counters[0] == counters[1] == counters[2]


def test_uniform_draws_are_even():
    config = ReplayConfig(buffer_size=4 * NUM_ENVS)
    batch = sample_jit(config, filled(config, 6), jax.random.key(1), 12_000, GAMMA)
    counts = np.unique(np.asarray(batch.actions), return_counts=True)[1]
    # Standard deviation of a count: sqrt(12,000 / 12) = 32.
    assert len(counts) == 12
    assert np.abs(counts - 1000).max() < 160


def test_observations_stay_in_their_type():
    config = ReplayConfig(buffer_size=12)
    replay = filled(config, 2)
    batch = sample_jit(config, replay, jax.random.key(0), 4, GAMMA)
    assert replay.steps.observations.dtype == batch.next_observations.dtype == jnp.uint8


def test_one_step_transitions_are_the_steps_as_they_were():
    config = ReplayConfig(buffer_size=12)
    replay = filled(config, 3, lambda t: (np.arange(NUM_ENVS) == t, np.arange(NUM_ENVS) == t - 1))
    batch = sample_jit(config, replay, jax.random.key(0), 64, GAMMA)
    actions = np.asarray(batch.actions)
    np.testing.assert_array_equal(batch.rewards, actions)
    np.testing.assert_array_equal(batch.observations, actions)
    np.testing.assert_array_equal(batch.next_observations, actions + 5)
    np.testing.assert_array_equal(batch.discounts, np.where(actions // 10 == actions % 10, 0.0, GAMMA))


@given(data=st.data(), num_added=st.integers(3, 9), num_steps=st.sampled_from([1, 3]))
@settings(max_examples=20, deadline=None)
def test_n_step_transitions_equal_a_loop_over_the_history(data, num_added, num_steps):
    ends = data.draw(st.lists(st.integers(0, 3), min_size=num_added * NUM_ENVS, max_size=num_added * NUM_ENVS))
    ends = np.array(ends).reshape(num_added, NUM_ENVS)
    config = ReplayConfig(buffer_size=5 * NUM_ENVS, num_steps=num_steps)
    batch = sample_jit(
        config, filled(config, num_added, lambda t: (ends[t] == 1, ends[t] == 2)), jax.random.key(0), 32, GAMMA
    )
    for i, action in enumerate(np.asarray(batch.actions)):
        time, env = divmod(int(action), 10)
        total, discount = 0.0, 1.0
        for t in range(time, time + num_steps):
            total += discount * (10 * t + env)
            discount *= 0.0 if ends[t, env] == 1 else GAMMA
            if ends[t, env] in (1, 2):
                break
        assert (batch.rewards[i], batch.discounts[i]) == (total, discount)
        assert batch.next_observations[i] == 10 * t + env + 5


def test_prioritized_draws_are_in_proportion_to_priorities():
    config = ReplayConfig(buffer_size=4 * NUM_ENVS, is_prioritized=True, priority_exponent=1.0)
    replay = filled(config, 4)
    errors = jnp.arange(12.0)
    replay = set_priorities(replay, jnp.arange(12), priorities_of(config, errors))
    batch = sample_jit(config, replay, jax.random.key(1), 6600, GAMMA)
    counts = np.bincount(np.asarray(batch.indices), minlength=12)
    # Stratified draws: each count lies within 2 of its share, 6600 * error / 66.
    assert np.abs(counts - 100 * np.arange(12)).max() <= 2
    np.testing.assert_allclose(batch.priorities, np.asarray(batch.indices) + 1e-6, rtol=1e-6)


def test_a_new_transition_gets_the_largest_priority_seen():
    config = ReplayConfig(buffer_size=4 * NUM_ENVS, is_prioritized=True, priority_exponent=0.5)
    replay = filled(config, 2)
    replay = set_priorities(replay, jnp.array([0, 1]), priorities_of(config, jnp.array([9.0, -4.0])))
    replay = add_jit(config, replay, step_at(2))
    np.testing.assert_allclose(replay.tree[-1][:9], [3, 2, 1, 1, 1, 1, 3, 3, 3], rtol=1e-6)


@pytest.mark.parametrize("num_leaves", [1, 31, 33, 1025, 2500])
def test_every_node_of_the_tree_is_the_sum_of_its_children(num_leaves):
    tree = memory._empty_tree(num_leaves)
    generator = np.random.default_rng(0)
    leaves = np.zeros(tree[-1].shape[0], np.float32)
    for _ in range(5):
        indices = generator.integers(0, num_leaves, 20)
        values = (generator.random() + indices).astype(np.float32)
        leaves[indices] = values
        tree = set_leaves_jit(tree, indices, values, indices // 32)
    np.testing.assert_array_equal(tree[-1], leaves)
    for above, below in pairwise(tree):
        np.testing.assert_allclose(above[: len(below) // 32], np.asarray(below).reshape(-1, 32).sum(1), rtol=1e-6)


@pytest.mark.parametrize("num_leaves", [5, 1000, 40_000])
def test_draws_from_the_tree_find_the_leaf_that_a_search_finds(num_leaves):
    generator = np.random.default_rng(0)
    # Integers, half of them zero: float32 sums are exact, and a leaf of 0 must never be drawn.
    values = (generator.integers(1, 50, num_leaves) * (generator.random(num_leaves) < 0.5)).astype(np.float32)
    values[0] = 3
    tree = memory._empty_tree(num_leaves)
    everything = jnp.arange(num_leaves)
    tree = set_leaves_jit(tree, everything, jnp.asarray(values), everything // 32)
    drawn, picked = jax.jit(memory._draw_leaves, static_argnums=2)(tree, jax.random.key(0), 256)
    parts = (np.arange(256, dtype=np.float32) + np.asarray(jax.random.uniform(jax.random.key(0), (256,)))) / 256
    expected = np.searchsorted(np.cumsum(values.astype(np.float64)), parts * values.sum(), side="right")
    np.testing.assert_array_equal(picked, values[np.asarray(drawn)])
    assert (np.asarray(picked) > 0).all()
    assert np.abs(np.asarray(drawn) - expected).max() <= 3
    assert np.mean(np.asarray(drawn) == expected) > 0.95


def test_a_row_of_slots_that_ends_inside_a_family_leaves_its_neighbours():
    tree = memory._empty_tree(100)
    everything = jnp.arange(100)
    tree = set_leaves_jit(tree, everything, jnp.ones(100), everything // 32)
    for slot in range(10):
        tree = set_slot_jit(tree, jnp.array(slot), 10, jnp.array(2.0))
        assert jnp.sum(tree[0]) == 100 + 10 * (slot + 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"buffer_size": 0}, "buffer_size=0"),
        ({"buffer_size": 2**31}, "buffer_size=2147483648"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"priority_exponent": 1.5}, "priority_exponent=1.5"),
    ],
)
def test_config_names_the_field_it_refuses(changes, named):
    with pytest.raises(InputError) as caught:
        replace(ReplayConfig(buffer_size=10), **changes)
    assert named in str(caught.value)


def test_a_buffer_below_one_window_is_refused():
    with pytest.raises(InputError, match="at least 6"):
        init_replay(ReplayConfig(buffer_size=5, num_steps=2), step_at(0))
