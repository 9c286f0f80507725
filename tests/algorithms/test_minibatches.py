"""Which rows share a forward and backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_lm.algorithms import minibatches
from jaxrl_lm.types import ActionEvaluation

LENGTHS = np.array([3, 90, 41, 7, 88, 12, 60, 33, 5, 71, 29, 54])


def test_parts_of_a_balanced_order_have_about_the_same_size():
    order = np.asarray(minibatches.balanced_order(jnp.asarray(LENGTHS), 4))
    assert sorted(order) == list(range(12))
    assert LENGTHS.reshape(3, 4).sum(axis=1).tolist() == [141, 193, 159]
    assert LENGTHS[order].reshape(3, 4).sum(axis=1).tolist() == [167, 176, 150]


@pytest.mark.parametrize("size", [2, 3, None])
def test_the_rows_announced_are_those_that_are_computed(size):
    """Packed rows have the sizes that the announced passes need."""
    lengths, key, seen = jnp.asarray(LENGTHS), jax.random.key(3), []

    def loss(params, rows):
        jax.debug.callback(lambda ids: seen.append(np.asarray(ids).tolist()), rows["id"], ordered=True)
        return jnp.sum(params * rows["x"]), {"ratio/max_error": jnp.zeros(())}

    def evaluate(params, observations, actions):
        del params
        jax.debug.callback(lambda ids: seen.append(np.asarray(ids).tolist()), actions, ordered=True)
        return ActionEvaluation(log_probs=observations, entropies=observations, values=actions)

    scored, learned = minibatches.forward_rows(key, lengths, 2, 2, size)
    found = minibatches.evaluate_in_parts(evaluate, size, lambda observations: observations)(
        (), lengths, jnp.arange(12)
    )
    jax.effects_barrier()
    assert seen == scored.tolist()
    np.testing.assert_array_equal(found.values, np.arange(12))
    np.testing.assert_array_equal(found.log_probs, LENGTHS)

    seen.clear()
    optimizer, params = optax.sgd(1.0), jnp.zeros(())
    batch = {"id": jnp.arange(12), "x": lengths.astype(jnp.float32)}
    minibatches.run_epochs(
        loss,
        (params, optimizer.init(params)),
        batch,
        key,
        optimizer=optimizer,
        learning_rate=jnp.asarray(1.0),
        num_epochs=2,
        num_minibatches=2,
        micro_batch_size=size,
        row_lengths=lambda rows: rows["x"],
    )
    jax.effects_barrier()
    assert seen == learned.tolist()
