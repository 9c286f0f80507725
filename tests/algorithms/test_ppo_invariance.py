"""What must not change an update of PPO: masked entries, the order of sequences, the unit of a minibatch."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_lm.algorithms import PPOConfig, make_ppo
from jaxrl_lm.algorithms.ppo import check_minibatches
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import ActionEvaluation, Trajectory
from tests.algorithms.fixtures import (
    BATCH,
    KEY,
    NUM_ACTIONS,
    NUM_STATES,
    NUM_STEPS,
    assert_trees_close,
    evaluate,
    init_params,
    largest_difference,
    make_trajectory,
    run,
)

CONFIG = PPOConfig(learning_rate=0.03, num_epochs=2, value_coefficient=0.5, adam_epsilon=1e-3, whiten_rewards=True)
SHAPE = (BATCH, NUM_STEPS)
FLOATS = ("log_probs", "values", "rewards", "discounts", "traces", "next_values")
junk = st.sampled_from([0.0, 1.0, -3.0, 1e30, np.nan, np.inf, -np.inf])


def with_junk(trajectory: Trajectory, values: dict[str, np.ndarray]) -> Trajectory:
    """Other entries where a step does not count: for `log_probs`, where the policy did not act."""
    changes = {}
    for name, junk_column in values.items():
        mask = trajectory.mask if name in ("log_probs", "actions", "observations") else trajectory.value_mask
        if name == "observations":  # the value's input too, so both masks must be 0
            mask = jnp.maximum(trajectory.mask, trajectory.value_mask)
        column = getattr(trajectory, name)
        changes[name] = jnp.where(mask > 0, column, jnp.asarray(junk_column, column.dtype))
    return replace(trajectory, **changes)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_stands_under_a_mask_of_zero_changes_nothing(data):
    trajectory = make_trajectory(noise=0.2)
    mask = data.draw(hnp.arrays(np.bool_, SHAPE).filter(np.any))
    value_mask = mask | data.draw(hnp.arrays(np.bool_, SHAPE))
    trajectory = replace(
        trajectory, mask=jnp.asarray(mask, jnp.float32), value_mask=jnp.asarray(value_mask, jnp.float32)
    )
    values = {name: data.draw(hnp.arrays(np.float32, SHAPE, elements=junk)) for name in FLOATS}
    values["actions"] = data.draw(hnp.arrays(np.int32, SHAPE, elements=st.integers(0, NUM_ACTIONS - 1)))
    values["observations"] = data.draw(hnp.arrays(np.int32, SHAPE, elements=st.integers(0, NUM_STATES - 1)))
    assert_trees_close(run(CONFIG, with_junk(trajectory, values)), run(CONFIG, trajectory))


def test_an_infinite_ratio_under_the_mask_does_not_reach_the_gradient():
    """A density, unlike a probability, has no upper bound: exp(log pi - log pi_old) overflows."""

    def evaluate_density(params: Any, observations: Any, actions: Any) -> ActionEvaluation:
        evaluation = evaluate(params, observations, actions)
        return replace(evaluation, log_probs=evaluation.log_probs * jnp.where(actions == 2, -1000.0, 1.0))

    trajectory = make_trajectory(noise=0.2)
    trajectory = replace(trajectory, mask=trajectory.mask * (trajectory.actions != 2))
    algorithm = make_ppo(CONFIG, evaluate_density)
    state, _ = algorithm.update(algorithm.init(init_params(), KEY), trajectory, KEY)
    assert_trees_close(state.params, run(CONFIG, trajectory)[0].params, atol=1e-6)


def test_kept_steps_do_change_the_update():
    trajectory = make_trajectory(noise=0.2)
    row, step = map(int, np.argwhere(np.array(trajectory.mask))[0])
    params = run(CONFIG, trajectory)[0].params
    for name in FLOATS[:4]:
        column = getattr(trajectory, name).at[row, step].add(0.37)
        other = run(CONFIG, replace(trajectory, **{name: column}))[0].params
        assert largest_difference(other, params) > 1e-5, name


def test_next_values_are_unread_where_the_episode_ends():
    trajectory = make_trajectory(noise=0.2)
    next_values = jnp.where(trajectory.discounts == 0, jnp.nan, trajectory.next_values)
    assert jnp.any(jnp.isnan(next_values) & (trajectory.value_mask > 0))
    assert_trees_close(run(CONFIG, replace(trajectory, next_values=next_values)), run(CONFIG, trajectory))


def test_columns_that_are_masked_throughout_can_be_dropped():
    trajectory = make_trajectory(noise=0.2)
    keep = jnp.arange(NUM_STEPS) < 3
    trajectory = replace(trajectory, mask=trajectory.mask * keep, value_mask=trajectory.value_mask * keep)
    narrow = jax.tree.map(lambda x: x[:, :3], trajectory)
    assert_trees_close(run(CONFIG, narrow), run(CONFIG, trajectory), atol=1e-6)


def test_the_order_of_the_sequences_does_not_matter_to_one_minibatch():
    trajectory = make_trajectory(noise=0.2)
    order = np.random.default_rng(0).permutation(BATCH)
    permuted = jax.tree.map(lambda x: x[order], trajectory)
    assert_trees_close(run(CONFIG, permuted), run(CONFIG, trajectory), atol=2e-6)


def test_one_minibatch_of_steps_is_one_minibatch_of_sequences():
    trajectory = make_trajectory(noise=0.2)
    by_steps, by_sequences = (run(replace(CONFIG, minibatch_unit=unit), trajectory) for unit in ("steps", "sequences"))
    assert_trees_close(by_steps, by_sequences, atol=2e-6)


@pytest.mark.parametrize("whitening", ["batch", "minibatch", "none"])
def test_importance_multiplies_the_whitened_advantages(whitening):
    """So weights of 1 change nothing, and constant ones scale the gradient of the policy alone."""
    trajectory = make_trajectory(noise=0.2)
    config = replace(CONFIG, whiten_advantages=whitening, num_epochs=1)

    def with_importance(weight):
        return run(config, replace(trajectory, importance=jnp.full(SHAPE, weight)))

    plain = run(config, trajectory)
    assert_trees_close(with_importance(1.0), plain)
    metrics = with_importance(0.25)[1]
    np.testing.assert_allclose(metrics["loss/policy"], 0.25 * plain[1]["loss/policy"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/value"], plain[1]["loss/value"], rtol=1e-6)


@pytest.mark.parametrize("whitening", ["batch", "minibatch"])
@pytest.mark.parametrize(("unit", "sizes"), [("sequences", (1, 2)), ("steps", (4, 10))])
def test_micro_batches_change_nothing(unit, sizes, whitening):
    """The mask has gaps, so micro-batches have different numbers of steps."""
    trajectory = make_trajectory(noise=0.2)
    config = replace(CONFIG, minibatch_unit=unit, num_minibatches=2, whiten_advantages=whitening, target_kl=100.0)
    whole = run(config, trajectory)
    for size in sizes:
        assert_trees_close(run(replace(config, micro_batch_size=size), trajectory), whole, atol=2e-6)


def test_micro_batches_that_do_not_divide_a_minibatch_are_refused():
    config = PPOConfig(num_minibatches=2, micro_batch_size=3)
    with pytest.raises(InputError, match=r"micro_batch_size=3 does not divide the 4 sequences of a minibatch; choose"):
        check_minibatches(config, 8, 5)


@pytest.mark.parametrize(
    ("unit", "num_minibatches", "text"),
    [
        (
            "sequences",
            3,
            r"num_minibatches=3 does not divide the 8 sequences of a batch; choose a divisor of 8",
        ),
        ("sequences", 16, r"num_minibatches=16 does not divide the 8 sequences"),
        ("steps", 7, r"num_minibatches=7 does not divide the 40 steps of a batch; choose a divisor of 40"),
    ],
)
def test_minibatches_that_do_not_divide_the_batch_are_refused(unit, num_minibatches, text):
    config = PPOConfig(num_minibatches=num_minibatches, minibatch_unit=unit)
    with pytest.raises(InputError, match=text):
        check_minibatches(config, *SHAPE)
    algorithm = make_ppo(config, evaluate)
    with pytest.raises(InputError, match=text):
        algorithm.update(algorithm.init(init_params(), KEY), make_trajectory(), KEY)


@pytest.mark.parametrize(("unit", "num_minibatches"), [("sequences", 4), ("steps", 20)])
def test_minibatches_that_divide_the_batch_are_accepted(unit, num_minibatches):
    check_minibatches(PPOConfig(num_minibatches=num_minibatches, minibatch_unit=unit), *SHAPE)


def test_steps_as_minibatches_need_an_observation_at_each_step():
    """A language model's observation is a whole sequence, prompt included: `[B, P + T]`."""
    algorithm = make_ppo(PPOConfig(minibatch_unit="steps"), evaluate)
    trajectory = replace(make_trajectory(), observations=jnp.zeros((BATCH, NUM_STEPS + 2), jnp.int32))
    with pytest.raises(InputError, match=r"minibatch_unit=steps .*\[8, 5\] steps, but one has shape \[8, 7\]"):
        algorithm.update(algorithm.init(init_params(), KEY), trajectory, KEY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_epochs", 0),
        ("num_minibatches", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip_range", -0.2),
        ("value_clip_range", 0.0),
        ("adam_epsilon", 0.0),
        ("value_coefficient", -0.1),
        ("entropy_coefficient", -0.1),
        ("max_grad_norm", -1.0),
        ("anneal_updates", -1),
        ("target_kl", 0.0),
        ("learning_rate", float("inf")),
        ("entropy_coefficient", float("inf")),
    ],
)
def test_a_bad_setting_is_refused_by_name_and_value(field, value):
    with pytest.raises(InputError, match=rf"^{field}={value!r} must be "):
        PPOConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        ("minibatch_unit", "tokens", "sequences, steps"),
        ("value_loss", "absolute", "clipped, squared, huber"),
        ("whiten_advantages", "step", "batch, minibatch, none"),
        ("adam", "jax", "pytorch, tensorflow"),
    ],
)
def test_an_unknown_choice_is_refused_and_the_known_ones_are_named(field, value, choices):
    config = PPOConfig()
    object.__setattr__(config, field, value)  # in the tests, beartype would refuse it before PPOConfig does
    with pytest.raises(InputError, match=rf"^{field}={value!r} must be one of {choices}$"):
        config.__post_init__()
