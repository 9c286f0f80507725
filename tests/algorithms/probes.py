"""Environments of one or two steps with known values, which a wrong algorithm gets wrong within seconds.

All are one environment whose parameters are traced: `train_on_probes` runs them side by side in one program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxrl_lm.envs.base import BatchEnvironment
from jaxrl_lm.envs.stepping import MaskedObservation

NEVER = 1_000_000


@struct.dataclass
class ProbeState(environment.EnvState):
    """time: steps made. clue: -1 or 1, drawn anew for every episode."""

    clue: Any = 0.0


@struct.dataclass
class ProbeParams(environment.EnvParams):
    """What is paid, and when; the reward is that of the step number `pays_at`, or of all steps where it is -1.

    max_steps_in_episode: time limit, which truncates. length: steps until the episode terminates. constant, by_clue,
    by_action, by_match: the reward is constant + by_clue * clue + by_action * (1 for action 1, -1 for action 0)
    + by_match * clue * (the same). allows_second: whether action 1 is legal.
    """

    length: Any = 1
    pays_at: Any = -1
    constant: Any = 0.0
    by_clue: Any = 0.0
    by_action: Any = 0.0
    by_match: Any = 0.0
    allows_second: Any = True


class ProbeEnvironment(BatchEnvironment):
    """Two actions; sees the clue, and whether the first step is made where episodes have two."""

    def __init__(self, *, has_action_mask: bool = False) -> None:
        self.has_action_mask = has_action_mask

    @property
    def name(self) -> str:
        return "Probe"

    @property
    def default_params(self) -> ProbeParams:
        return ProbeParams(max_steps_in_episode=NEVER)

    def initial_states(self, key, shape, params):
        clue = jnp.where(jax.random.bernoulli(key, 0.5, shape), 1.0, -1.0)
        return ProbeState(time=jnp.zeros(shape, jnp.int32), clue=clue)

    def transition(self, state, action, params):
        sign = 2.0 * action - 1.0
        paid = params.constant + params.by_clue * state.clue
        paid += params.by_action * sign + params.by_match * state.clue * sign
        is_paid = (params.pays_at < 0) | (state.time == params.pays_at)
        return state.replace(time=state.time + 1), jnp.where(is_paid, paid, 0.0)

    def observation(self, state, params):
        # Where episodes never end, time is not shown: the value is the same at every step.
        is_second = (state.time > 0) & (params.length < NEVER)
        seen = jnp.stack([state.clue, is_second.astype(jnp.float32)], axis=-1)
        if not self.has_action_mask:
            return seen
        legal = jnp.stack([jnp.ones((), bool), jnp.asarray(params.allows_second, bool)])
        return MaskedObservation(observation=seen, action_mask=legal)

    def is_terminated(self, state, params):
        return state.time >= params.length

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (2,), jnp.float32)


class Probe(NamedTuple):
    """An environment and what is true of it.

    Attributes:
        name: for messages.
        env_params: of `ProbeEnvironment`.
        values: `values(discount) -> V` of the best policy for `OBSERVATIONS`; NaN where one does not occur.
        actions: the best actions there; -1 where both are as good.
    """

    name: str
    env_params: ProbeParams
    values: Callable[[float], list[float]]
    actions: list[int]


NAN = float("nan")
OBSERVATIONS = jnp.array([[-1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]])
ANY = [-1, -1, -1, -1]


def _params(**changes: Any) -> ProbeParams:
    return ProbeParams(**({"max_steps_in_episode": NEVER} | changes))  # pyright: ignore[reportArgumentType]


PROBES = [
    Probe("constant reward", _params(constant=1.0), lambda g: [1, 1, NAN, NAN], ANY),
    Probe("reward by observation", _params(by_clue=1.0), lambda g: [-1, 1, NAN, NAN], ANY),
    Probe("reward one step later", _params(length=2, pays_at=1, constant=1.0), lambda g: [g, g, 1, 1], ANY),
    Probe("reward by action", _params(by_action=1.0), lambda g: [1, 1, NAN, NAN], [1, 1, -1, -1]),
    Probe("reward by action and observation", _params(by_match=1.0), lambda g: [1, 1, NAN, NAN], [0, 1, -1, -1]),
    Probe(
        "time limit only",
        _params(length=NEVER, max_steps_in_episode=3, constant=1.0),
        lambda g: [1 / (1 - g), 1 / (1 - g), NAN, NAN],
        ANY,
    ),
]
"""For `ProbeEnvironment()`."""

MASKED_PROBES = [
    # Q of the illegal action is never learned; a maximum over it would be above -1.
    Probe(
        "illegal action",
        _params(length=2, pays_at=1, constant=4.0, by_action=5.0, allows_second=False),
        lambda g: [-g, -g, -1, -1],
        [0, 0, 0, 0],
    ),
    Probe(
        "legal action",
        _params(length=2, pays_at=1, constant=4.0, by_action=5.0),
        lambda g: [9 * g, 9 * g, 9, 9],
        [-1, -1, 1, 1],
    ),
]
"""For `ProbeEnvironment(has_action_mask=True)`."""


def train_on_probes(learner, probes: list[Probe], num_updates: int, key: jax.Array):
    """States after `num_updates` of each probe, leaves `[len(probes), ...]`."""
    env_params = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *(p.env_params for p in probes)
    )

    @jax.jit
    def train(keys, env_params):
        states = jax.vmap(learner.init)(keys, env_params)

        def step(states, _):
            states, _ = jax.vmap(learner.update)(states, env_params)
            return states, None

        return jax.lax.scan(step, states, length=num_updates)[0]

    return train(jax.random.split(key, len(probes)), env_params)


def masked_observations(probe: Probe) -> MaskedObservation:
    """`OBSERVATIONS` with what is legal beside them."""
    legal = jnp.array([True, bool(probe.env_params.allows_second)])
    return MaskedObservation(observation=OBSERVATIONS, action_mask=jnp.tile(legal, (len(OBSERVATIONS), 1)))


def check_probe(probe: Probe, values, actions, discount: float, tolerance: float) -> None:
    """Compare what was learned for `OBSERVATIONS` with what is true.

    Args:
        probe: which.
        values: V, `[4]`.
        actions: greedy actions, `[4]`.
        discount: gamma.
        tolerance: largest error of a value, as a share of the probe's largest value.
    """
    expected = np.array(probe.values(discount))
    occurs = ~np.isnan(expected)
    error = np.max(np.abs(np.asarray(values) - expected)[occurs]) / np.max(np.abs(expected[occurs]))
    assert error < tolerance, f"{probe.name}: values {values}, should be {expected}"
    for action, best in zip(np.asarray(actions), probe.actions, strict=True):
        assert best in (-1, action), f"{probe.name}: actions {actions}, should be {probe.actions}"
