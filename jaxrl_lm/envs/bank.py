"""Environments whose levels are rows of a bank in their parameters, made outside the step loop.

`refresh` replaces levels between chunks of updates, so that training sees new ones while a step only reads the bank.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment
from jaxtyping import Array, Bool, Int

from jaxrl_lm.envs.base import LevelEnvironment
from jaxrl_lm.types import PyTree


@struct.dataclass
class BankParams(environment.EnvParams):
    """What episodes are drawn from.

    Attributes:
        max_steps_in_episode: time limit.
        bank: the levels, leaves `[L, ...]`.
        first_level: of those that new episodes are drawn from, int32.
        num_drawn: how many they are, int32.
    """

    max_steps_in_episode: PyTree = 1
    # gymnax's own field has a default, so these need one.
    bank: PyTree = None
    first_level: PyTree = 0
    num_drawn: PyTree = 1


class BankEnvironment(LevelEnvironment):
    """A `LevelEnvironment` with `BankParams`, whose states have a field `level`, the row of the bank.

    Subclasses define `max_steps`, `begin`, `of_part`, `optimal_returns` and `count_levels`, and what every
    `BatchEnvironment` does.

    Attributes:
        config: settings of the environment, hashable.
        source: settings of the levels, hashable; has `num_levels`, `seed` and `make_bank(key)`.
    """

    config: Any
    source: Any

    def __init__(self, config: Any, source: Any) -> None:
        self.config = config
        self.source = source
        self._default_params: BankParams | None = None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self.config, self.source) == (other.config, other.source)

    def __hash__(self) -> int:
        return hash((self.config, self.source))

    @property
    def max_steps(self) -> int:
        """Time limit of an episode."""
        raise NotImplementedError

    def begin(self, level: Int[Array, "*B"], params: BankParams) -> Any:
        """States at the start of levels, leaves `[*B, ...]`."""
        raise NotImplementedError

    @property
    def generates_levels(self) -> bool:
        """Levels are drawn at random."""
        return True

    @property
    def num_levels(self) -> int:
        """The source's number."""
        return self.source.num_levels

    @property
    def level_seed(self) -> int:
        """The source's seed."""
        return self.source.seed

    def new_params(self, key: jax.Array) -> BankParams:
        """Levels from the environment's source; jit it. Fixed levels are the same whatever the key."""
        return _params_of(self.source.make_bank(key), jnp.asarray(self.max_steps, jnp.int32))

    def refresh(self, params: BankParams, key: jax.Array) -> BankParams:
        """Fresh levels for the episodes to come; jit it.

        Running episodes keep their levels: the bank has two halves, the inactive one is replaced and becomes active.
        Call this at most every `max_steps_in_episode` steps, so that no episode is left in the half that is replaced.
        The first call doubles the bank.
        """
        fresh = self.source.make_bank(key)
        half = bank_size(fresh)
        if bank_size(params.bank) == half:
            bank = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), params.bank, fresh)
            return params.replace(bank=bank, first_level=jnp.asarray(half, jnp.int32))  # pyright: ignore[reportAttributeAccessIssue]
        first = half - params.first_level
        bank = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, first, axis=0), params.bank, fresh
        )
        return params.replace(bank=bank, first_level=first)  # pyright: ignore[reportAttributeAccessIssue]

    def current_levels(self, params: BankParams, key: jax.Array, num_levels: int) -> BankParams:
        """Levels that new episodes are drawn from, each of them once before any comes again."""
        order = jax.random.permutation(key, bank_size(params.bank))
        is_current = (order >= params.first_level) & (order < params.first_level + params.num_drawn)
        rows = order[jnp.argsort(~is_current)[jnp.arange(num_levels) % params.num_drawn]]
        return _params_of(jax.tree.map(lambda leaf: leaf[rows], params.bank), params.max_steps_in_episode)

    def level_resets(self, params: BankParams) -> tuple[Any, Any]:
        """An episode at the start of every level of the bank: for an evaluation that leaves none out."""
        states = self.begin(jnp.arange(bank_size(params.bank), dtype=jnp.int32), params)
        return jax.vmap(self.observation, (0, None))(states, params), states

    @property
    def default_params(self) -> BankParams:
        """Levels of the source's own seed; generated once, since gymnax asks at every step that is given none."""
        kept = self._default_params
        if kept is None or jax.tree.leaves(kept.bank)[0].is_deleted():
            # A step may be traced when it asks; levels that are kept must not be tracers.
            with jax.ensure_compile_time_eval():
                kept = self._default_params = _new_params(self, jax.random.key(self.source.seed))
        return kept

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: BankParams) -> Any:
        """Starts of levels drawn uniformly."""
        return self.begin(draw_levels(key, shape, params), params)


def bank_size(bank: PyTree) -> int:
    """L, the number of levels of a bank."""
    return jax.tree.leaves(bank)[0].shape[0]


def draw_levels(key: jax.Array, shape: tuple[int, ...], params: BankParams) -> Int[Array, "*B"]:
    """Rows of the bank for new episodes, uniformly from those in use, int32 `shape`."""
    return params.first_level + jax.random.randint(key, shape, 0, params.num_drawn, jnp.int32)


def keep_levels(bank: PyTree, is_kept: Bool[Array, " M"], num_levels: int) -> PyTree:
    """The first `num_levels` levels that are kept, in their order; where there are fewer, they come again.

    A generator that must leave some levels out draws more than are needed, since shapes are static.

    Args:
        bank: leaves `[M, ...]`.
        is_kept: which of them to keep; at least one.
        num_levels: L.
    """
    num_kept = jnp.maximum(1, jnp.sum(is_kept))
    rows = jnp.argsort(~is_kept)[jnp.arange(num_levels) % num_kept]
    return jax.tree.map(lambda leaf: leaf[rows], bank)


def _params_of(bank: PyTree, max_steps: jax.Array) -> BankParams:
    return BankParams(
        max_steps_in_episode=max_steps,
        bank=bank,
        first_level=jnp.zeros((), jnp.int32),
        num_drawn=jnp.asarray(bank_size(bank), jnp.int32),
    )


# Compiled once for all environments with the same settings.
_new_params = jax.jit(lambda env, key: env.new_params(key), static_argnums=0)
