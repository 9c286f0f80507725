"""The two Adams by hand, and clipping by global norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms.optimizers import adam, clipped_adam


def directions(kind, gradients, *, epsilon):
    """What Adam makes of one gradient after the other."""
    transformation = adam(kind, epsilon=epsilon)
    state, results = transformation.init(jnp.zeros_like(gradients[0])), []
    for gradient in gradients:
        direction, state = transformation.update(gradient, state)
        results.append(np.array(direction))
    return np.stack(results)


@pytest.mark.parametrize("kind", ["pytorch", "tensorflow"])
def test_the_first_two_directions_worked_by_hand(kind):
    g1, g2, epsilon = np.array([0.3, -0.02]), np.array([-0.1, -0.04]), 0.01
    m1, v1 = 0.1 * g1, 0.001 * g1**2
    m2, v2 = 0.09 * g1 + 0.1 * g2, 0.000999 * g1**2 + 0.001 * g2**2
    if kind == "pytorch":
        expected = [
            (m1 / 0.1) / (np.sqrt(v1 / 0.001) + epsilon),  # g1 / (|g1| + epsilon)
            (m2 / 0.19) / (np.sqrt(v2 / 0.001999) + epsilon),
        ]
    else:
        expected = [
            (m1 / 0.1) * np.sqrt(0.001) / (np.sqrt(v1) + epsilon),
            (m2 / 0.19) * np.sqrt(0.001999) / (np.sqrt(v2) + epsilon),
        ]
    gradients = [jnp.asarray(g, jnp.float32) for g in (g1, g2)]
    # 1 - 0.999 keeps five digits in float32.
    np.testing.assert_allclose(directions(kind, gradients, epsilon=epsilon), expected, rtol=2e-5)


def test_the_two_kinds_agree_as_epsilon_vanishes():
    gradients = [jnp.array([0.5, -2.0, 0.1]) * scale for scale in (1.0, -0.3, 0.7)]
    tensorflow, pytorch = (directions(kind, gradients, epsilon=1e-12) for kind in ("tensorflow", "pytorch"))
    np.testing.assert_allclose(tensorflow, pytorch, rtol=2e-5)


def test_tensorflow_steps_are_shorter_at_first_where_gradients_are_small_and_catch_up():
    gradients = [jnp.array([1e-5, 1e-2])] * 3000
    step = jax.jit(adam("tensorflow").update), jax.jit(adam("pytorch").update)
    states = [adam(kind).init(gradients[0]) for kind in ("tensorflow", "pytorch")]
    shares = []
    for gradient in gradients:
        (shorter, states[0]), (longer, states[1]) = (s(gradient, x) for s, x in zip(step, states, strict=True))
        shares.append(np.array(shorter / longer))
    # At t = 1, with g = epsilon: sqrt(0.001) / (sqrt(0.001) + 1) against 1 / 2.
    np.testing.assert_allclose(shares[0][0], 2 * np.sqrt(0.001) / (1 + np.sqrt(0.001)), rtol=1e-4)
    assert shares[0][0] < shares[10][0] < shares[100][0] < shares[-1][0]
    assert shares[-1][0] > 0.98
    assert shares[0][1] > 0.96  # a gradient far above epsilon is hardly damped


@pytest.mark.parametrize("kind", ["pytorch", "tensorflow"])
def test_moments_have_buffers_of_their_own_and_can_be_donated(kind):
    state = adam(kind).init({"w": jnp.ones(3)})
    moved = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    np.testing.assert_array_equal(moved.mu["w"], np.ones(3))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("gradient", "longest", "clipped"),
    [
        ([3.0, 4.0], 1.0, [0.6, 0.8]),  # shortened, its direction kept; elementwise it would be [1, 1]
        ([3.0, 0.1], 1.0, [3.0 / np.sqrt(9.01), 0.1 / np.sqrt(9.01)]),
        ([0.3, 0.4], 1.0, [0.3, 0.4]),
        ([3.0, 4.0], 0.0, [3.0, 4.0]),
    ],
)
def test_gradients_are_clipped_by_the_norm_over_all_leaves(gradient, longest, clipped):
    optimizer = clipped_adam("pytorch", epsilon=1.0, max_grad_norm=longest)
    grads = dict(zip("ab", map(jnp.float32, gradient), strict=True))
    direction, _ = optimizer.update(grads, optimizer.init(grads))
    expected = np.array(clipped) / (np.abs(clipped) + 1.0)  # Adam's first direction, at epsilon 1
    np.testing.assert_allclose(jax.tree.leaves(direction), expected, rtol=1e-5)
