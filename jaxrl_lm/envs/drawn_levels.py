"""Banks of levels that are drawn at random, of which only those are kept that fit: playable, and of one part."""

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import checks
from jaxrl_lm.envs.bank import keep_levels
from jaxrl_lm.envs.base import LevelPart
from jaxrl_lm.envs.memory import available_bytes, check_bank
from jaxrl_lm.envs.splitting import cumulative_shares, held_out_threshold
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

# Levels that are drawn once to learn how many can be played and which layouts there are.
_NUM_SURVEYED = 8192
# Of the drawn levels, those that can be played, and those of a part; below, too many would be drawn in vain.
_LOWEST_PLAYABLE, _LOWEST_KEPT = 0.02, 0.001
# More levels are drawn than are needed on average: even of rare ones, none at all is a chance of exp(-32).
_SPARE, _SPARE_LEVELS = 1.1, 32


class Draw(NamedTuple):
    """Levels as they are drawn.

    Attributes:
        bank: leaves `[M, ...]`.
        is_playable: whether a level can be used at all, bool `[M]`.
        hashes: of what decides about the part of a level, uint32 `[M]`.
    """

    bank: PyTree
    is_playable: jax.Array
    hashes: jax.Array


class Survey(NamedTuple):
    """What levels a source draws.

    Attributes:
        playable: share of the drawn levels that can be used.
        hashes: the different hashes of these, ascending.
        shares: how likely the hash of one of these is at most each hash.
    """

    playable: float
    hashes: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, kw_only=True)
class DrawnLevels:
    """Source of a bank of random levels. Subclasses add the settings of a level and define what raises here.

    Attributes:
        num_levels: levels of a bank.
        seed: of the bank that an environment begins with.
        part: "training" leaves out the layouts that "held-out" draws from, about an eighth of the levels.
        trained_on: source of the training levels that held-out levels must differ from; None for the same settings.
    """

    num_levels: int = 4096
    seed: int = 0
    part: LevelPart = "all"
    trained_on: "DrawnLevels | None" = None

    remedy: ClassVar[str]
    """What to change where hardly any level can be played, or all are alike."""

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "num_levels")

    def draw(self, key: jax.Array, num_levels: int) -> Draw:
        """Levels without regard to their part."""
        raise NotImplementedError

    @property
    def bytes_kept(self) -> int:
        """Of a level of the bank."""
        raise NotImplementedError

    @property
    def bytes_while_made(self) -> int:
        """Of a level while it is drawn."""
        raise NotImplementedError

    @property
    def description(self) -> str:
        """What the levels are, in the plural, for messages."""
        raise NotImplementedError

    def make_bank(self, key: jax.Array) -> PyTree:
        """The levels of a key, leaves `[num_levels, ...]`. Pure; jit it.

        Should too few fit among those that are drawn, some come twice.

        Raises:
            InputError: hardly any level can be played, the levels cannot be divided into parts, or the bank does not
                fit into memory.
        """
        threshold, share = self._split()
        num_drawn = math.ceil((_SPARE * self.num_levels + _SPARE_LEVELS) / share)
        check_bank(
            self.num_levels,
            num_drawn=num_drawn,
            bytes_kept=self.bytes_kept,
            bytes_while_made=self.bytes_while_made,
            available=available_bytes(),
            what=f" {'' if self.part == 'all' else f'{self.part} '}{self.description}",
        )
        drawn = self.draw(key, num_drawn)
        is_kept = drawn.is_playable
        if self.part != "all":
            is_kept &= (drawn.hashes < jnp.uint32(threshold)) == (self.part == "held-out")
        return keep_levels(drawn.bank, is_kept, self.num_levels)

    def _split(self) -> tuple[int, float]:
        """Below which hash levels are held out, and the share of the drawn levels that are kept."""
        survey = _survey(self._without_part())
        if self.part == "all":
            return 0, survey.playable
        trained = survey if self.trained_on is None else _survey(self.trained_on._without_part())
        if len(trained.hashes) < 2:
            raise InputError(f"{self.description} have one layout only, so that none can be held out; {self.remedy}")
        threshold = held_out_threshold(trained.hashes, trained.shares)
        num_held_out = int(np.searchsorted(survey.hashes, threshold))
        held_out = float(survey.shares[num_held_out - 1]) if num_held_out else 0.0
        share = survey.playable * (held_out if self.part == "held-out" else 1 - held_out)
        if share < _LOWEST_KEPT:
            is_other = self.trained_on is not None
            remedy = "evaluate with the settings of the training" if is_other else self.remedy
            raise InputError(f"only {share:.2%} of the {self.description} are {self.part} levels; {remedy}")
        return threshold, share

    def _without_part(self) -> "DrawnLevels":
        return replace(self, num_levels=1, seed=0, part="all", trained_on=None)


@functools.cache
def _survey(source: DrawnLevels) -> Survey:
    # Banks are often made under jit, where this must be a constant all the same.
    with jax.ensure_compile_time_eval():
        drawn = jax.jit(source.draw, static_argnums=1)(jax.random.key(0), _NUM_SURVEYED)
        is_playable, hashes = np.asarray(drawn.is_playable), np.asarray(drawn.hashes)
    playable = float(is_playable.mean())
    if playable < _LOWEST_PLAYABLE:
        raise InputError(
            f"only {is_playable.sum()} of {_NUM_SURVEYED} drawn {source.description} can be played; {source.remedy}"
        )
    return Survey(playable, *cumulative_shares(hashes[is_playable]))
