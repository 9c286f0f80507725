"""Replay memory of parallel environments: a ring buffer of steps with uniform or prioritised n-step sampling.

Leaves are `[slots, num_envs, ...]`. A slot holds one step of all environments, so a step is written as one row, and an
environment's next step is in the next row. The index of a transition is `slot * num_envs + env`. Priorities are kept in
a sum tree with 32 children per node: three levels hold 32,768 transitions, and each level costs one gather and one
small matrix product for the whole batch (measured on a CPU with 131,072 leaves and batches of 128: 75 microseconds to
draw and update, against 550 for a cumulative sum over the leaves and 190 for a binary tree).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxrl_lm import checks
from jaxrl_lm.core.q_losses import n_step_transitions
from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

NUM_CHILDREN = 32
MAX_TRANSITIONS = 2**30


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Size and sampling of a replay memory.

    Attributes:
        buffer_size: capacity in transitions, over all environments; the oldest are overwritten.
        num_steps: n of the n-step transitions.
        is_prioritized: sample in proportion to `priority^priority_exponent` instead of uniformly.
        priority_exponent: alpha, 0 for uniform.
    """

    buffer_size: int
    num_steps: int = 1
    is_prioritized: bool = False
    priority_exponent: float = 0.6

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "buffer_size", "num_steps")
        checks.between(self, 1, MAX_TRANSITIONS, "buffer_size", why="transition indices are int32")
        checks.between(self, 0, 1, "priority_exponent")

    def num_slots(self, num_envs: int) -> int:
        """Stored steps per environment.

        Raises:
            InputError: too few for one transition.
        """
        slots = self.buffer_size // num_envs
        if slots < self.num_steps:
            raise InputError(
                f"buffer_size={self.buffer_size} holds {slots} steps of each of {num_envs} environments, too few for "
                f"num_steps={self.num_steps}; use at least {num_envs * self.num_steps}"
            )
        return slots


@record
class Step:
    """One step of B environments, or of sampled transitions.

    Attributes:
        observations: leaves `[B, ...]`, stored in their own dtype.
        actions: int32 `[B]`.
        rewards: float32 `[B]`.
        terminated: whether the episode terminated, bool `[B]`.
        truncated: whether a time limit cut it, bool `[B]`.
        next_observations: observations after the step, before any reset, leaves `[B, ...]`.
    """

    observations: PyTree
    actions: PyTree
    rewards: PyTree
    terminated: PyTree
    truncated: PyTree
    next_observations: PyTree


@record
class Replay:
    """A replay memory.

    Attributes:
        steps: a `Step` with leaves `[slots, num_envs, ...]`.
        next_slot: slot that is written next, int32 scalar.
        num_filled: slots in use, int32 scalar (a count of all steps ever written would overflow).
        tree: levels of the sum tree from the root's children to the leaves, `[nodes]` each; None if uniform.
        max_priority: largest priority ever set, given to new transitions; float32 scalar.
    """

    steps: Step
    next_slot: PyTree
    num_filled: PyTree
    tree: PyTree
    max_priority: PyTree


class Transitions(NamedTuple):
    """A batch of n-step transitions.

    Attributes:
        observations: s, leaves `[B, ...]`.
        actions: a, `[B]`.
        rewards: discounted sum of up to n rewards, `[B]`.
        discounts: factor on the value of `next_observations`; 0 if the episode terminated before, `[B]`.
        next_observations: bootstrap observations; the final observation at a time limit, leaves `[B, ...]`.
        indices: positions in the memory, int32 `[B]`.
        priorities: sampling priorities, `[B]`.
    """

    observations: PyTree
    actions: jax.Array
    rewards: jax.Array
    discounts: jax.Array
    next_observations: PyTree
    indices: jax.Array
    priorities: jax.Array


def blank_step(observations: PyTree, num_envs: int) -> Step:
    """An example step for `init_replay`."""
    flags = jnp.zeros(num_envs, bool)
    return Step(
        observations=observations,
        actions=jnp.zeros(num_envs, jnp.int32),
        rewards=jnp.zeros(num_envs, jnp.float32),
        terminated=flags,
        truncated=flags,
        next_observations=observations,
    )


def init_replay(config: ReplayConfig, example: Step) -> Replay:
    """An empty memory for steps like `example`, whose leaves are `[num_envs, ...]`.

    Raises:
        InputError: the buffer is too small for the environments.
    """
    num_envs = example.rewards.shape[0]
    slots = config.num_slots(num_envs)
    return Replay(
        steps=jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), example),
        next_slot=jnp.zeros((), jnp.int32),
        num_filled=jnp.zeros((), jnp.int32),
        tree=_empty_tree(slots * num_envs) if config.is_prioritized else None,
        max_priority=jnp.ones((), jnp.float32),
    )


def add(config: ReplayConfig, replay: Replay, step: Step) -> Replay:
    """Add one step of every environment; a transition can be sampled once n steps follow its start."""
    slots, num_envs = replay.steps.rewards.shape
    slot = replay.next_slot
    steps = jax.tree.map(lambda kept, new: kept.at[slot].set(new), replay.steps, step)
    tree = replay.tree
    if config.is_prioritized:
        if config.num_steps > 1:
            tree = _set_slot(tree, slot, num_envs, jnp.zeros((), jnp.float32))
        num_before = config.num_steps - 1
        priority = jnp.where(replay.num_filled >= num_before, replay.max_priority, 0.0)
        tree = _set_slot(tree, (slot - num_before) % slots, num_envs, priority)
    num_filled = jnp.minimum(replay.num_filled + 1, slots)
    return replace(replay, steps=steps, next_slot=(slot + 1) % slots, num_filled=num_filled, tree=tree)


def sample(
    config: ReplayConfig, replay: Replay, key: Key[Array, ""], batch_size: int, discount: Float[Array, ""] | float
) -> Transitions:
    """Sample transitions with replacement.

    Args:
        config: settings of the memory.
        replay: memory with at least n filled slots.
        key: PRNG key.
        batch_size: B.
        discount: gamma.

    Reference: Schaul et al., 2016, Prioritized Experience Replay (one draw from each of B equal parts of the sum).
    """
    slots, num_envs = replay.steps.rewards.shape
    if config.is_prioritized:
        indices, priorities = _draw_leaves(replay.tree, key, batch_size)
    else:
        num_starts = replay.num_filled - config.num_steps + 1
        offsets = jax.random.randint(key, (batch_size,), 0, jnp.maximum(num_starts, 1) * num_envs, jnp.int32)
        oldest = jnp.where(replay.num_filled == slots, replay.next_slot, 0)
        indices = (oldest * num_envs + offsets) % (slots * num_envs)
        priorities = jnp.ones(batch_size, jnp.float32)
    return _read(replay.steps, indices, priorities, config.num_steps, discount)


def priorities_of(config: ReplayConfig, td_errors: Float[Array, " B"]) -> Float[Array, " B"]:
    """Sampling priorities `(|delta| + 1e-6)^alpha`."""
    return (jnp.abs(td_errors) + 1e-6) ** config.priority_exponent


def set_priorities(replay: Replay, indices: Int[Array, " B"], priorities: Float[Array, " B"]) -> Replay:
    """Set the priorities of sampled transitions; equal indices must have equal priorities."""
    tree = _set_leaves(replay.tree, indices, priorities, indices // NUM_CHILDREN)
    return replace(replay, tree=tree, max_priority=jnp.maximum(replay.max_priority, jnp.max(priorities)))


def _read(
    steps: Step, indices: jax.Array, priorities: jax.Array, num_steps: int, discount: jax.Array | float
) -> Transitions:
    slots, num_envs = steps.rewards.shape
    total = slots * num_envs
    flat = jax.tree.map(lambda x: x.reshape(total, *x.shape[2:]), steps)
    window = (indices[:, None] + jnp.arange(num_steps, dtype=jnp.int32) * num_envs) % total
    terminated = flat.terminated[window]
    rewards, discounts, last = n_step_transitions(
        flat.rewards[window], jnp.where(terminated, 0.0, discount), terminated | flat.truncated[window]
    )
    ends = (indices + last * num_envs) % total
    return Transitions(
        observations=jax.tree.map(lambda x: x[indices], flat.observations),
        actions=flat.actions[indices],
        rewards=rewards,
        discounts=discounts,
        next_observations=jax.tree.map(lambda x: x[ends], flat.next_observations),
        indices=indices,
        priorities=priorities,
    )


def _empty_tree(num_leaves: int) -> tuple[jax.Array, ...]:
    """Levels of the tree, each padded to a multiple of the number of children."""
    levels, size = [], num_leaves
    while not levels or size > 1:
        families = -(-size // NUM_CHILDREN)
        levels.append(jnp.zeros(families * NUM_CHILDREN, jnp.float32))
        size = families
    return tuple(reversed(levels))


def _set_slot(tree: tuple[jax.Array, ...], slot: jax.Array, num_envs: int, priority: jax.Array) -> PyTree:
    """Give one priority to all transitions that start in a slot."""
    first = slot * num_envs
    leaves = first + jnp.arange(num_envs, dtype=jnp.int32)
    # Leaves of a row share parents; summing the children of an untouched parent again does not change it.
    num_parents = (num_envs - 1) // NUM_CHILDREN + 2
    families = tree[-1].shape[0] // NUM_CHILDREN
    parents = jnp.minimum(first // NUM_CHILDREN + jnp.arange(num_parents, dtype=jnp.int32), families - 1)
    return _set_leaves(tree, leaves, jnp.full(num_envs, priority), parents)


def _set_leaves(tree: tuple[jax.Array, ...], leaves: jax.Array, values: jax.Array, parents: jax.Array) -> PyTree:
    """Set leaves and recompute the sums of `parents` up to the root, so that no rounding error accumulates."""
    levels = list(tree)
    levels[-1] = levels[-1].at[leaves].set(values)
    nodes = parents
    for depth in reversed(range(len(levels) - 1)):
        families = levels[depth + 1].reshape(-1, NUM_CHILDREN)[nodes]
        levels[depth] = levels[depth].at[nodes].set(jnp.sum(families, axis=-1))
        nodes = nodes // NUM_CHILDREN
    return tuple(levels)


def _draw_leaves(tree: tuple[jax.Array, ...], key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Draw leaves in proportion to their values; also return the values."""
    triangle = jnp.triu(jnp.ones((NUM_CHILDREN, NUM_CHILDREN), jnp.float32))
    parts = jnp.arange(batch_size, dtype=jnp.float32) + jax.random.uniform(key, (batch_size,), jnp.float32)
    rest = parts / batch_size * jnp.sum(tree[0])
    nodes, picked = jnp.zeros(batch_size, jnp.int32), rest
    for level in tree:
        children = level.reshape(-1, NUM_CHILDREN)[nodes]
        # Prefix sums by a product, twice as fast as cumsum; exact in float32 on every device.
        sums = jnp.matmul(children, triangle, precision=jax.lax.Precision.HIGHEST)
        # Rounding may bring the rest to the sum, which would select a child after the last one with a value.
        rest = jnp.clip(rest, 0.0, jnp.nextafter(sums[:, -1], -1.0))
        child = jnp.sum(sums <= rest[:, None], axis=-1, dtype=jnp.int32)
        child = jnp.minimum(child, NUM_CHILDREN - 1)
        is_before = jnp.arange(NUM_CHILDREN) < child[:, None]
        rest -= jnp.sum(jnp.where(is_before, children, 0.0), axis=-1)
        picked = jnp.take_along_axis(children, child[:, None], axis=-1)[:, 0]
        nodes = nodes * NUM_CHILDREN + child
    return nodes, picked
