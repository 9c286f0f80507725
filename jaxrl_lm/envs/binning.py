"""Discretise continuous spaces for tabular agents and Q-networks."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import environment, spaces
from jaxtyping import Array, Float, Int, Num

from jaxrl_lm.envs.base import EnvironmentWrapper
from jaxrl_lm.envs.binning_config import BinningConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

# Environments write "unbounded" as infinity or as the largest float32.
_UNBOUNDED = float(np.finfo(np.float32).max) / 2
_MAX_CODES = 2**31 - 1


class BinnedEnvironment(EnvironmentWrapper):
    """A gymnax environment whose observation, or whose action if it was a Box, or both, is one integer.

    The bounds are read once, from the spaces under `params`; step the environment with the same parameters.
    """

    def __init__(self, env: environment.Environment[Any, Any], params: Any, config: BinningConfig) -> None:
        """Cut the spaces of `env`.

        Args:
            env: any gymnax environment whose observation is one array, or one integer.
            params: its parameters.
            config: how finely.

        Raises:
            InputError: for an axis without bounds (names it), a count below its least, counts or bounds that do not
                fit the axes, more states than int32 counts, or spaces that are discrete already.
        """
        super().__init__(env)
        self.config = config
        observed, acted = env.observation_space(params), env.action_space(params)
        self._edges = _cut_observations(env, params, observed, config)
        self._moves = _cut_actions(acted, config)
        self._observation_space = observed
        if self._edges is not None:
            self._observation_space = spaces.Discrete(math.prod(len(axis) + 1 for axis in self._edges))
        self._action_space = acted
        if self._moves is not None:
            self._action_space = spaces.Discrete(math.prod(len(axis) for axis in self._moves))
        self._action_shape = tuple(acted.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BinnedEnvironment) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.env, self.config, self._edges, self._moves

    @property
    def bins(self) -> tuple[Any, Any]:
        """Inner edges of each axis of the observation, and values of each axis of the action; None if not binned."""
        return self._edges, self._moves

    @property
    def num_actions(self) -> int:
        """How many actions there are, or axes of them."""
        return self.env.num_actions if self._moves is None else self._action_space.n

    def begin(self, observation: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """The first observation as a number."""
        return self._encode(observation), state

    def step_env(
        self, key: jax.Array, state: Any, action: int | float | jax.Array, params: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict[Any, Any]]:
        """gymnax's step of one environment, without time limit and reset."""
        action = self._decode(action)
        observation, state, reward, terminated, info = self.env.step_env(key, state, action, params)
        return self._encode(observation), state, reward, terminated, info

    def observe(self, key: jax.Array, state: Any, action: int | float | jax.Array | None, params: Any) -> jax.Array:
        """gymnax's observation hook; `action` is the number of a binned one."""
        action = None if action is None else self._decode(action)
        return self._encode(self.env.observe(key, state, action, params))

    def action_space(self, params: Any = None) -> Any:
        """Numbers of the actions, or what the environment inside takes."""
        del params
        return self._action_space

    def observation_space(self, params: Any = None) -> Any:
        """Numbers of the states, row-major over the observation's axes, or what the environment inside shows."""
        del params
        return self._observation_space

    def state_space(self, params: Any) -> Any:
        """That of the environment inside."""
        return self.env.state_space(params)

    def _encode(self, observation: jax.Array) -> jax.Array:
        if self._edges is None:
            return observation
        return state_number(jnp.ravel(observation), self._edges)

    def _decode(self, action: int | float | jax.Array) -> int | float | jax.Array:
        if self._moves is None:
            return action
        return action_value(jnp.asarray(action), self._moves).reshape(self._action_shape)


def state_number(observation: Num[Array, " D"], edges: Sequence[Sequence[float]]) -> Int[Array, ""]:
    """The number of the bin of an observation.

    number = sum over axes d of bin_d * product over later axes e of num_bins_e,
    bin_d = how many of the axis' inner edges are <= observation_d

    Args:
        observation: its values.
        edges: inner edges of each axis, ascending; an axis of n bins has n - 1.

    Returns:
        int32, from 0 to the product of the axes' bins - 1.
    """
    widest = max(len(axis) for axis in edges)
    # Nothing is >= NaN, so that padding counts for no axis.
    padded = np.array([[*axis, *(math.nan,) * (widest - len(axis))] for axis in edges], np.float32)
    bins = jnp.sum(observation[:, None] >= padded, axis=1, dtype=jnp.int32)
    num_bins = [len(axis) + 1 for axis in edges]
    strides = np.array([math.prod(num_bins[axis + 1 :]) for axis in range(len(edges))], np.int32)
    return jnp.sum(bins * strides, dtype=jnp.int32)


def action_value(action: Int[Array, ""], moves: Sequence[Sequence[float]]) -> Float[Array, " K"]:
    """The values of an action number, row-major over the axes.

    Args:
        action: from 0 to the product of the axes' values - 1.
        moves: values of each axis.

    Returns:
        One of its values for each of the K axes, float32.
    """
    chosen = jnp.unravel_index(action, tuple(len(axis) for axis in moves))
    return jnp.stack([jnp.array(axis, jnp.float32)[index] for axis, index in zip(moves, chosen, strict=True)])


def _cut_observations(
    env: environment.Environment[Any, Any], params: Any, space: Any, config: BinningConfig
) -> tuple[tuple[float, ...], ...] | None:
    """Inner edges of each axis; None where observations stay as they are."""
    if config.num_bins is None:
        return None
    if isinstance(space, spaces.Discrete):
        raise InputError(f"{env.name}: num_bins={config.num_bins}, but observations are already integers; leave it out")
    shown = jax.eval_shape(env.reset, jax.random.key(0), params)[0]
    if not isinstance(space, spaces.Box) or getattr(shown, "shape", None) != tuple(space.shape):
        raise InputError(f"{env.name}: binning needs an observation that is one array; this one's space is {space}")
    num_axes = math.prod(space.shape)
    counts = _per_axis("num_bins", config.num_bins, num_axes, least=1)
    low = _bounds("low", config.low, space.low, space.shape)
    high = _bounds("high", config.high, space.high, space.shape)
    for axis in range(num_axes):
        _check_axis(axis, counts[axis], low[axis], high[axis])
    _check_codes("num_bins", counts)
    return tuple(
        tuple(np.linspace(low[axis], high[axis], counts[axis] + 1)[1:-1].tolist()) if counts[axis] > 1 else ()
        for axis in range(num_axes)
    )


def _cut_actions(space: Any, config: BinningConfig) -> tuple[tuple[float, ...], ...] | None:
    """Values of each axis; None where actions stay as they are."""
    if config.num_actions is None:
        return None
    if isinstance(space, spaces.Discrete):
        raise InputError(f"num_actions={config.num_actions}, but actions are already discrete; leave it out")
    if not isinstance(space, spaces.Box):
        raise InputError(f"actions must be discrete or a Box to be binned; this space is {space}")
    num_axes = math.prod(space.shape)
    counts = _per_axis("num_actions", config.num_actions, num_axes, least=2)
    low, high = (_bounds(name, None, getattr(space, name), space.shape) for name in ("low", "high"))
    for axis in range(num_axes):
        if not (abs(low[axis]) < _UNBOUNDED and abs(high[axis]) < _UNBOUNDED):
            raise InputError(
                f"action axis {axis} has no bounds ({low[axis]:g} to {high[axis]:g}); only a bounded Box can be binned"
            )
    _check_codes("num_actions", counts)
    return tuple(tuple(np.linspace(low[axis], high[axis], counts[axis]).tolist()) for axis in range(num_axes))


def _per_axis(name: str, counts: int | tuple[int, ...], num_axes: int, *, least: int) -> tuple[int, ...]:
    all_counts = (counts,) * num_axes if isinstance(counts, int) else counts
    if len(all_counts) != num_axes:
        raise InputError(f"{name}={counts} names {len(all_counts)} axes, but there are {num_axes}")
    if min(all_counts) < least:
        raise InputError(f"{name}={counts} must be at least {least} for every axis")
    return all_counts


def _bounds(
    name: str, given: tuple[float | None, ...] | None, of_space: Any, shape: tuple[int, ...]
) -> tuple[float, ...]:
    bounds = np.broadcast_to(np.asarray(of_space, np.float64), shape).ravel().tolist()
    if given is None:
        return tuple(bounds)
    if len(given) != len(bounds):
        raise InputError(f"{name}={given} names {len(given)} axes, but the observation has {len(bounds)}")
    return tuple(own if mine is None else float(mine) for mine, own in zip(given, bounds, strict=True))


def _check_axis(axis: int, count: int, low: float, high: float) -> None:
    if count == 1:
        return
    for name, bound in (("low", low), ("high", high)):
        # Written so that NaN fails too.
        if not abs(bound) < _UNBOUNDED:
            raise InputError(f"observation axis {axis} has no bound ({name}[{axis}]={bound:g}); give {name}[{axis}]")
    if not low < high:
        raise InputError(f"observation axis {axis}: low={low:g} must be less than high={high:g}")


def _check_codes(name: str, counts: tuple[int, ...]) -> None:
    product = math.prod(counts)
    if product > _MAX_CODES:
        raise InputError(
            f"{name}={counts[0] if len(set(counts)) == 1 else counts} over {len(counts)} axes makes about "
            f"10^{math.log10(product):.0f} combinations, more than {_MAX_CODES:,}; take fewer"
        )
