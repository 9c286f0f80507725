"""Step sizes and exploration over the course of a run; all traced, so that sweeps over them vmap."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

Scalar = Num[Array, ""] | int | float


def linear_schedule(step: Scalar, start: Scalar, end: Scalar, num_steps: Scalar) -> Float[Array, ""]:
    """A straight line that stays where it ends: `start + (end - start) * min(step / num_steps, 1)`.

    Args:
        step: steps made so far.
        start: value at step 0.
        end: value from step `num_steps` on; from the start where `num_steps` is 0.
        num_steps: length of the line, in steps.

    Returns:
        The value at `step`, float32.
    """
    num_steps = jnp.asarray(num_steps, jnp.float32)
    share = jnp.where(num_steps > 0, step / jnp.where(num_steps > 0, num_steps, 1.0), 1.0)
    share = jnp.clip(share, 0.0, 1.0)
    return (1.0 - share) * start + share * end


def visit_schedule(
    learning_rate: Scalar, num_new: Num[Array, "*B"], num_visits: Int[Array, "*B"], power: Scalar
) -> Float[Array, "*B"]:
    """A step size that falls with the visits of an entry: `learning_rate * (num_new / num_visits)^power`.

    With power 0 it is constant. With learning rate and power 1 and an entry moved towards the mean of its new targets,
    the entry is the mean of all its targets. With a power above 1/2, at most 1, Q-learning converges.

    Args:
        learning_rate: step size of an entry's first visit.
        num_new: visits that are learned from now, at least 1; or a sum of their weights.
        num_visits: visits so far, the new ones included.
        power: how fast the step size falls.

    Returns:
        Step size of each entry.

    Reference: Even-Dar and Mansour, 2003, Learning Rates for Q-learning.
    """
    return learning_rate * (num_new / num_visits) ** power
