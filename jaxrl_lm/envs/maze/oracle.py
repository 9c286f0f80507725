"""Shortest paths: distance of every cell to the goal, optimal moves, and optimal returns."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8, UInt16

from jaxrl_lm.envs.maze.grid import DIRECTIONS, UNREACHABLE


def distances_to_goal(moves: UInt8[Array, "*B C"], goal: Int[Array, "*B"], width: int) -> UInt16[Array, "*B C"]:
    """Length of a shortest path from each cell to the goal, found by flooding all cells at once from the goal.

    distance(goal) = 0, distance(c) = 1 + min over legal moves of distance(where the move leads)

    The flood takes as many cheap steps as the longest shortest path; loops do not matter. One call for a batch is
    faster than `vmap`, since the levels are contiguous in memory.

    Args:
        moves: bits of the legal moves, as `grid.legal_moves` gives them; a legal move can also be made backwards.
        goal: the goal's cell.
        width: columns of the grid.

    Returns:
        Distances in moves; `UNREACHABLE` for walls, and for cells without a path to the goal.
    """
    num_cells = moves.shape[-1]
    moves = jnp.moveaxis(moves, -1, 0)
    cells = jnp.arange(num_cells).reshape(-1, *(1,) * goal.ndim)
    at_goal = jnp.where(cells == goal, 0, UNREACHABLE).astype(jnp.uint16)

    def spread(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        old, _ = carry
        padded = jnp.pad(old, ((width, width), *((0, 0),) * goal.ndim), constant_values=UNREACHABLE)
        new = old
        for move, (rows, columns) in enumerate(DIRECTIONS):
            offset = rows * width + columns
            nearby = jnp.minimum(padded[width + offset : width + offset + num_cells], UNREACHABLE - 1) + 1
            new = jnp.where((moves >> move) & 1 > 0, jnp.minimum(new, nearby), new)
        return new, (new != old).any()

    distances, _ = jax.lax.while_loop(lambda carry: carry[1], spread, (at_goal, jnp.array(True)))
    return jnp.moveaxis(distances, 0, -1)


def optimal_moves(distances: UInt16[Array, "*B C"], moves: UInt8[Array, "*B C"], width: int) -> UInt8[Array, "*B C"]:
    """Bits of the legal moves on a shortest path to the goal; none for the goal, walls and unreachable cells.

    Args:
        distances: of `distances_to_goal`.
        moves: bits of the legal moves.
        width: columns of the grid.
    """
    here = distances.astype(jnp.int32)
    bits = jnp.zeros_like(moves)
    for move, (rows, columns) in enumerate(DIRECTIONS):
        # A move across the border, where the roll wraps around, is not legal.
        there = jnp.roll(here, -(rows * width + columns), axis=-1)
        bits |= (there == here - 1).astype(jnp.uint8) << move
    return bits & moves


def optimal_return(
    distance: Int[Array, "*B"] | UInt16[Array, "*B"],
    *,
    discount: float | Float[Array, ""],
    reward: Literal["article", "steps", "sparse", "shaped"],
    num_cells: int,
) -> Float[Array, "*B"]:
    """Discounted return of a shortest path of d moves to the goal, for each reward of `MazeConfig`.

    article: discount^(d-1) - (1 + discount + ... + discount^(d-2))
    steps:   -(1 + discount + ... + discount^(d-2))
    sparse:  discount^(d-1)
    shaped:  discount^(d-1) + d / num_cells

    The shaping terms discount * P(next) - P(here) cancel one by one on any path, and leave -P(start) =
    d / num_cells; so the discount must be the one that `MazeConfig` shapes with. All are the best returns there
    are for that discount.

    Args:
        distance: d, moves from the start to the goal.
        discount: gamma, 0 to 1.
        reward: kind of reward.
        num_cells: cells of the grid, walls included.

    Returns:
        float32; 0 at the goal itself, where the episode is over; nan where the goal is `UNREACHABLE`.

    Raises:
        ValueError: reward is none of these.
    """
    steps_before = jnp.maximum(distance.astype(jnp.int32) - 1, 0).astype(jnp.float32)
    last = _power(discount, steps_before)
    if reward == "article":
        returns = last - _geometric_sum(discount, steps_before)
    elif reward == "steps":
        returns = -_geometric_sum(discount, steps_before)
    elif reward == "sparse":
        returns = last
    elif reward == "shaped":
        returns = last + distance.astype(jnp.float32) / num_cells
    else:
        raise ValueError(f"reward={reward!r} must be article, steps, sparse or shaped")
    returns = jnp.where(distance == 0, 0.0, returns)
    return jnp.where(distance == UNREACHABLE, jnp.nan, returns)


def paid_return(
    distance: Int[Array, "*B"] | UInt16[Array, "*B"],
    pay: Callable[[jax.Array], jax.Array],
    *,
    discount: float | Float[Array, ""],
    reward: Literal["article", "steps", "sparse", "shaped"],
    num_cells: int,
) -> Float[Array, "*B"]:
    """Discounted return of a shortest path when `pay(r)` is paid for each reward r, such as a clipped one.

    return(d) = pay(r(d)) + discount * return(d - 1),  return(0) = 0

    Here r(d) is the reward of the move from distance d to d - 1.

    Args:
        distance: d, moves from the start to the goal.
        pay: what is paid for a reward.
        discount: gamma, 0 to 1; the one that `MazeConfig` shapes with.
        reward: kind of reward.
        num_cells: cells of the grid, walls included.

    Returns:
        As of `optimal_return`, which this is if `pay` changes nothing.
    """
    here = jnp.arange(1, num_cells, dtype=jnp.float32)  # no path is longer
    at_goal = (here == 1).astype(jnp.float32)
    rewards = {
        "article": 2.0 * at_goal - 1.0,
        "steps": at_goal - 1.0,
        "sparse": at_goal,
        "shaped": at_goal + (here - discount * (here - 1.0)) / num_cells,
    }[reward]

    def longer(shorter: jax.Array, paid: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = paid + discount * shorter
        return value, value

    _, returns = jax.lax.scan(longer, jnp.zeros((), jnp.float32), pay(rewards))
    returns = jnp.concatenate([jnp.zeros(1, jnp.float32), returns])
    steps = jnp.minimum(distance.astype(jnp.int32), num_cells - 1)
    return jnp.where(distance == UNREACHABLE, jnp.nan, returns[steps])


def _power(base: float | jax.Array, exponents: jax.Array) -> jax.Array:
    """base^n with 0^0 = 1."""
    return jnp.where(base > 0, jnp.exp(exponents * _log(base)), (exponents == 0).astype(jnp.float32))


def _geometric_sum(discount: float | jax.Array, num_terms: jax.Array) -> jax.Array:
    """1 + discount + ... + discount^(n-1)."""
    # expm1, since 1 - discount^n loses its digits where the discount is close to 1.
    total = -jnp.expm1(num_terms * _log(discount)) / jnp.where(discount < 1, 1 - discount, 1.0)
    total = jnp.where(discount < 1, total, num_terms)
    return jnp.where(discount > 0, total, (num_terms > 0).astype(jnp.float32))


def _log(x: float | jax.Array) -> Any:
    """log x, precise close to 1, a number's in double precision; 0 where x is 0, for branches that are not taken."""
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.log1p(xp.where(x > 0, x, 1.0) - 1.0).astype(xp.float32)
