"""What every algorithm in environments holds to: randomness of every update's own, from the state; exploration."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.rollouts.agent_policy import make_policy
from jaxrl_lm.spaces import is_discrete
from jaxrl_lm.types import NO_BATCH_AXIS
from tests.contracts.learners import TRAINERS, environment_learner

# From 0.8 to 0.2 over the first half of ten updates.
EPSILON = {"epsilon_start": 0.8, "epsilon_end": 0.2, "epsilon_fraction": 0.5, "anneal_updates": 10}
EPSILON_AFTER = {0: 0.8, 2: 0.56, 7: 0.2}
NUM_DRAWN = 20_000


@pytest.fixture(scope="module", params=TRAINERS)
def updated(request: pytest.FixtureRequest) -> dict[str, Any]:
    """States after an update: of one state twice, of the same as if an update later, and of another seed's."""
    name = request.param
    schedule = EPSILON if hasattr(TRAINERS[name], "epsilon_start") else {}
    config, learner, env, params = environment_learner(name, **schedule)
    update = jax.jit(lambda state: learner.update(state, params)[0])
    start = jax.jit(learner.init)(jax.random.key(0), params)
    return {
        "config": config,
        "learner": learner,
        "env": (env, params),
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


def test_sampled_actions_are_those_of_the_next_update(updated):
    """Each as often as in training: by its probability, or epsilon-greedily with the epsilon of that update."""
    learner, state = updated["learner"], updated["once"]
    env, params = updated["env"]
    if not is_discrete(env.action_space(params)):
        pytest.skip("answers of several tokens are sampled in tests/rollouts/test_text_policy.py")
    shown = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], env.reset(jax.random.key(1), params)[0])
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, NUM_DRAWN, axis=0), shown)

    def shares(act: Any, state: Any) -> np.ndarray:
        actions, _ = jax.jit(act)(state, many, jnp.ones(NUM_DRAWN, bool), None, jax.random.key(2))
        return np.bincount(np.asarray(actions), minlength=env.num_actions) / NUM_DRAWN

    if hasattr(updated["config"], "epsilon_start"):
        greedy = shares(learner.act, state)
        expected = {
            num_updates: epsilon / env.num_actions + (1 - epsilon) * greedy
            for num_updates, epsilon in EPSILON_AFTER.items()
        }
    else:
        policy = make_policy(updated["config"].policy, env, params)
        each = jnp.arange(env.num_actions)[:, None]
        same = jnp.repeat(shown[:, None], env.num_actions, axis=0)
        log_probs = policy.evaluate(state.ppo.params, same, each).log_probs
        expected = {0: np.exp(np.asarray(log_probs)[:, 0])}
    for num_updates, wanted in expected.items():
        found = shares(learner.sample, dataclasses.replace(state, num_updates=jnp.int32(num_updates)))
        np.testing.assert_allclose(found, wanted, atol=0.02, err_msg=f"after {num_updates} updates")
