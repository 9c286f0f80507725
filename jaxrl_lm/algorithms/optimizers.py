"""Gradient transformations shared by the algorithms."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxrl_lm.types import PyTree

AdamKind = Literal["pytorch", "tensorflow"]


def adam(kind: AdamKind, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-5) -> optax.GradientTransformation:
    """Adam without the learning rate; multiply its updates by minus the learning rate.

    With m, v the running moments and c1 = 1 - b1^t, c2 = 1 - b2^t their bias corrections:

        pytorch:     (m / c1) / (sqrt(v / c2) + epsilon)
        tensorflow:  (m / c1) * sqrt(c2) / (sqrt(v) + epsilon)

    TensorFlow's epsilon is larger by 1 / sqrt(c2) in the first updates and damps small gradients there.

    Reference: Kingma and Ba, 2014, Adam: A Method for Stochastic Optimization (TensorFlow's form is the
    closing remark of its section 2); Huang et al., 2023, The N Implementation Details of RLHF with PPO.
    """
    if kind == "pytorch":
        return optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon)
    return _scale_by_adam_tensorflow(b1, b2, epsilon)


def clipped_adam(kind: AdamKind, *, epsilon: float, max_grad_norm: float) -> optax.GradientTransformation:
    """`adam` of gradients clipped to a global norm of `max_grad_norm`; 0 disables clipping."""
    clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm else optax.identity()
    return optax.chain(clip, adam(kind, epsilon=epsilon))


def _scale_by_adam_tensorflow(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    def init(params: PyTree) -> optax.ScaleByAdamState:
        # Separate zeros for each moment: a buffer that appears twice in a state cannot be donated.
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(
        grads: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        count = optax.safe_increment(state.count)
        scale = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        direction = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + epsilon), mu, nu)
        return direction, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
