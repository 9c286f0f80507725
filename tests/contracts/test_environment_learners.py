"""What every algorithm in environments holds to: fresh randomness at every update, none but the state's."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from jaxrl_lm.envs import make
from jaxrl_lm.types import NO_BATCH_AXIS
from tests.contracts.learners import TRAINERS

SMALL: dict[str, dict[str, Any]] = {
    "dqn": {"num_envs": 16, "steps_per_update": 4, "learning_starts": 128, "batch_size": 16, "buffer_size": 512},
    "pqn": {"num_envs": 16, "num_steps": 4, "num_minibatches": 2},
    "ppo": {"num_envs": 16, "num_steps": 4},
}


@pytest.fixture(scope="module", params=TRAINERS)
def updated(request: pytest.FixtureRequest) -> dict[str, Any]:
    """States after an update: of one state twice, of the same as if an update later, and of another seed's."""
    kind = TRAINERS[request.param]
    is_tabular = request.param not in SMALL
    env, params = make("ChainMaze-v0" if is_tabular else "CartPole-v1")
    config = kind(out="", **(SMALL.get(request.param) or {"num_envs": 16, "num_steps": 4}))
    learner = config.make_learner(env, params)
    update = jax.jit(lambda state: learner.update(state, params)[0])
    start = jax.jit(learner.init)(jax.random.key(0), params)
    return {
        "once": update(start),
        "again": update(start),
        "an update later": update(dataclasses.replace(start, num_updates=start.num_updates + 1)),
        "with another key": update(dataclasses.replace(start, key=jax.random.key(9))),
        "at the largest count": update(dataclasses.replace(start, num_updates=start.num_updates + (2**31 - 1))),
        "batch axes": learner.batch_axes(start),
    }


def numbers(state: Any) -> list[np.ndarray]:
    """Everything but what tells updates and keys apart."""
    state = dataclasses.replace(state, num_updates=0, key=None)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def differ(first: Any, second: Any) -> bool:
    return any(not np.array_equal(a, b) for a, b in zip(numbers(first), numbers(second), strict=True))


def test_an_update_is_a_function_of_its_state(updated):
    assert not differ(updated["once"], updated["again"])


@pytest.mark.parametrize("other", ["an update later", "with another key", "at the largest count"])
def test_no_two_updates_draw_the_same(updated, other):
    """Else samples repeat: an update's key must come from the state's and from how many went before."""
    assert differ(updated["once"], updated[other])


def test_the_count_of_updates_never_becomes_negative(updated):
    """Schedules would begin anew, with a learning rate above its start."""
    assert int(updated["once"].num_updates) == 1
    assert int(updated["at the largest count"].num_updates) == 2**30


def test_batch_axes_name_the_axis_of_the_environments(updated):
    """Of every part of an environment, and of nothing else."""
    state, axes = updated["once"], updated["batch axes"]
    assert jax.tree.structure(axes) == jax.tree.structure(state)
    for (path, axis), leaf in zip(jax.tree_util.tree_leaves_with_path(axes), jax.tree.leaves(state), strict=True):
        name = jax.tree_util.keystr(path)
        assert axis == NO_BATCH_AXIS or leaf.shape[axis] == 16, name
        if "env_states" in name or "observations" in name or ".lengths" in name:
            assert axis != NO_BATCH_AXIS, name
        if "params" in name or "optimizer" in name:
            assert axis == NO_BATCH_AXIS, name
