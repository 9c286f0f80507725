"""Wrappers around environments, by name: stacked frames, sticky actions, clipped rewards, flat observations."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces

from jaxrl_lm.envs.base import EnvironmentWrapper
from jaxrl_lm.envs.stepping import MaskedObservation
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree


@struct.dataclass(kw_only=True)
class WrappedState:
    """State of a wrapped environment.

    Attributes:
        inner: state of the inner environment.
        extra: state of the wrapper; None if it has none.
        time: steps of the episode, as in gymnax's states.
    """

    inner: PyTree
    extra: PyTree
    time: PyTree


class Wrapper(EnvironmentWrapper):
    """An environment around another that may remember something; as it is, it changes nothing.

    Subclasses redefine what they change. They are equal where wrapper, value and the environment inside are, so that
    programs are compiled once.
    """

    def __init__(self, env: Any, params: Any, value: float | None) -> None:
        """Wrap an environment.

        Args:
            env: any gymnax environment.
            params: its parameters, for its spaces.
            value: of the wrapper; None for its default.
        """
        super().__init__(env)
        self.value = value
        self._inner_space = env.observation_space(params)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (other.env, other.value) == (self.env, self.value)

    def __hash__(self) -> int:
        return hash((type(self), self.env, self.value))

    def first_extra(self, observation: PyTree) -> PyTree:
        """What is remembered at the start of an episode."""
        del observation
        return None

    def next_extra(self, extra: PyTree, observation: PyTree, action: jax.Array) -> PyTree:
        """What is remembered after a step."""
        del observation, action
        return extra

    def see(self, observation: PyTree, extra: PyTree) -> PyTree:
        """What is shown for an observation (of a `MaskedObservation`, without its mask)."""
        del extra
        return observation

    def act(self, key: jax.Array, action: jax.Array, extra: PyTree) -> jax.Array:
        """The action that the environment inside is given."""
        del key, extra
        return action

    def begin(self, observation: PyTree, state: PyTree) -> tuple[PyTree, WrappedState]:
        """Observation and state with what is remembered."""
        extra = self.first_extra(_seen(observation))
        shown = _with_seen(observation, self.see(_seen(observation), extra))
        return shown, WrappedState(inner=state, extra=extra, time=state.time)

    def inner_state(self, state: WrappedState) -> PyTree:
        """Without what is remembered."""
        return state.inner

    def step_env(
        self, key: jax.Array, state: WrappedState, action: int | float | jax.Array, params: Any
    ) -> tuple[PyTree, WrappedState, jax.Array, jax.Array, dict[Any, Any]]:
        """gymnax's step of one environment, without time limit and reset."""
        act_key, step_key = jax.random.split(key)
        acted = self.act(act_key, jnp.asarray(action), state.extra)
        observation, inner, reward, terminated, info = self.env.step_env(step_key, state.inner, acted, params)
        extra = self.next_extra(state.extra, _seen(observation), acted)
        shown = _with_seen(observation, self.see(_seen(observation), extra))
        new = WrappedState(inner=inner, extra=extra, time=inner.time)
        return shown, new, self.pay(jnp.asarray(reward, jnp.float32)), terminated, info


class FrameStack(Wrapper):
    """Stack the last k observations on the last axis, oldest first; the first one is repeated k times at a reset."""

    def __init__(self, env: Any, params: Any, value: float | None) -> None:
        super().__init__(env, params, value)
        self.num_frames = int(value or 4)
        space = self._inner_space
        if not isinstance(space, spaces.Box) or not space.shape:
            raise InputError(f"frame_stack: observations of {env.name} are {space}, not arrays; leave it out")

    def first_extra(self, observation: jax.Array) -> jax.Array:
        """The first observation k times, `[..., k]` blocks."""
        return jnp.concatenate([observation] * self.num_frames, axis=-1)

    def next_extra(self, extra: jax.Array, observation: jax.Array, action: jax.Array) -> jax.Array:
        """The oldest leaves, the newest joins."""
        del action
        return jnp.concatenate([extra[..., observation.shape[-1] :], observation], axis=-1)

    def see(self, observation: jax.Array, extra: jax.Array) -> jax.Array:
        """All of them."""
        del observation
        return extra

    def observation_space(self, params: Any = None) -> spaces.Box:
        """k times as long on the last axis."""
        del params
        space = self._inner_space
        shape = (*space.shape[:-1], space.shape[-1] * self.num_frames)
        low, high = (_repeated(bound, space.shape, self.num_frames) for bound in (space.low, space.high))
        return spaces.Box(low, high, shape, space.dtype)


class StickyActions(Wrapper):
    """With a probability, the environment repeats its last action instead of taking the new one.

    The optimal returns of levels stay those without repeated actions, which no policy exceeds.

    Reference: Machado et al., 2018, Revisiting the Arcade Learning Environment.
    """

    def __init__(self, env: Any, params: Any, value: float | None) -> None:
        super().__init__(env, params, value)
        self.probability = 0.25 if value is None else value
        if not 0 <= self.probability < 1:
            raise InputError(f"sticky_actions={value} must be at least 0 and below 1")
        self._example = jax.eval_shape(env.action_space(params).sample, jax.random.key(0))

    def first_extra(self, observation: PyTree) -> tuple[jax.Array, jax.Array]:
        """No action yet, and whether there is one."""
        del observation
        return jnp.zeros(self._example.shape, self._example.dtype), jnp.zeros((), bool)

    def next_extra(
        self, extra: tuple[jax.Array, jax.Array], observation: PyTree, action: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The action that was taken."""
        del extra, observation
        return action.astype(self._example.dtype), jnp.ones((), bool)

    def act(self, key: jax.Array, action: jax.Array, extra: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The last action or the new one."""
        last, has_last = extra
        return jnp.where(has_last & jax.random.bernoulli(key, self.probability), last.astype(action.dtype), action)


class ClipReward(Wrapper):
    """Rewards cut to an interval around 0."""

    def __init__(self, env: Any, params: Any, value: float | None) -> None:
        super().__init__(env, params, value)
        self.largest = 1.0 if value is None else value
        if not self.largest > 0:
            raise InputError(f"clip_reward={value} must be above 0")

    def pay(self, reward: jax.Array) -> jax.Array:
        """At least -largest, at most largest."""
        return jnp.clip(reward, -self.largest, self.largest)


class Flatten(Wrapper):
    """All parts of a Dict, Tuple or array observation in one float32 vector, in the order of `jax.tree.leaves`."""

    def __init__(self, env: Any, params: Any, value: float | None) -> None:
        super().__init__(env, params, value)
        _flat_bounds(self._inner_space)

    def see(self, observation: PyTree, extra: PyTree) -> jax.Array:
        """The parts one after the other."""
        del extra
        return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(observation)])

    def observation_space(self, params: Any = None) -> spaces.Box:
        """One vector with the bounds of its parts; a discrete part is its number."""
        del params
        low, high = _flat_bounds(self._inner_space)
        return spaces.Box(jnp.asarray(low), jnp.asarray(high), low.shape, jnp.float32)


WRAPPERS: dict[str, Callable[[Any, Any, float | None], Wrapper]] = {
    "frame_stack": FrameStack,
    "sticky_actions": StickyActions,
    "clip_reward": ClipReward,
    "flatten": Flatten,
}
"""Every wrapper by its name."""


def wrap(env: Any, params: Any, wrappers: tuple[str, ...]) -> Any:
    """An environment in wrappers, the first of them innermost.

    Args:
        env: any gymnax environment.
        params: its parameters.
        wrappers: NAME or NAME=VALUE each, of `WRAPPERS`.

    Raises:
        InputError: an unknown name, a value that is not a number, or an environment that does not fit.
    """
    for text in wrappers:
        name, equals, given = text.partition("=")
        name = name.replace("-", "_")
        if name not in WRAPPERS:
            near = get_close_matches(name, WRAPPERS, n=1)
            guess = f", did you mean {near[0]}?" if near else ";"
            raise InputError(f"wrappers={text!r} is unknown{guess} there are: {', '.join(WRAPPERS)}")
        env = WRAPPERS[name](env, params, _value(text, given) if equals else None)
    return env


def _value(text: str, given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = np.nan
    whole = text.startswith("frame")
    if not np.isfinite(value) or (whole and (value < 1 or value != int(value))):
        raise InputError(f"wrappers={text!r} must have {'a whole number of at least 1' if whole else 'a number'}")
    return value


def _seen(observation: PyTree) -> PyTree:
    return observation.observation if isinstance(observation, MaskedObservation) else observation


def _with_seen(observation: PyTree, seen: PyTree) -> PyTree:
    if isinstance(observation, MaskedObservation):
        return MaskedObservation(observation=seen, action_mask=observation.action_mask)
    return seen


def _repeated(bound: Any, shape: tuple[int, ...], times: int) -> jax.Array:
    return jnp.concatenate([jnp.broadcast_to(jnp.asarray(bound), shape)] * times, axis=-1)


def _flat_bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of all numbers of a space, float32."""
    if isinstance(space, spaces.Discrete):
        return np.zeros(1, np.float32), np.full(1, space.n - 1, np.float32)
    if isinstance(space, spaces.Box):
        low, high = (
            np.broadcast_to(np.asarray(bound, np.float32), space.shape).ravel() for bound in (space.low, space.high)
        )
        return low, high
    if isinstance(space, spaces.Dict):
        parts = [_flat_bounds(space.spaces[name]) for name in sorted(space.spaces)]
    elif isinstance(space, spaces.Tuple):
        parts = [_flat_bounds(part) for part in space.spaces]
    else:
        raise InputError(f"flatten: {space} is not a Dict, Tuple, Box or Discrete space")
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])
