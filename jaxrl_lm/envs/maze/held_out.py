"""Hold out mazes from training by a hash of their walls, independent of start and goal."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxrl_lm.envs.maze.generators import GENERATORS
from jaxrl_lm.envs.maze.grid import LevelBank, legal_moves
from jaxrl_lm.envs.splitting import HELD_OUT_SHARE, cumulative_shares, hash_layouts, held_out_threshold, mix
from jaxrl_lm.errors import InputError

# Up to 7x7 a generator may have so few layouts that a fixed threshold leaves one side empty; 9x9 has over 10,000.
_MOST_CELLS_COUNTED = 49
_NUM_COUNTED = 4096


class Split(NamedTuple):
    """How generated levels are divided into those of training and those held out.

    Attributes:
        unit: "layout": all levels with the same walls are on one side. "level": walls, start and goal together
            decide, because the generator has only one layout at this size.
        threshold: levels whose hash is below it are held out.
        share: how likely a generated level is held out.
    """

    unit: Literal["layout", "level"]
    threshold: int
    share: float


def split_levels(generator: str, height: int, width: int, *, trained_on: str | None = None) -> Split:
    """The division of a generator's levels; the same in every process.

    Layouts are held out in the order of their hashes until they make up an eighth of the generated levels. At least
    one layout is held out and at least one stays for training.

    Args:
        generator: a name in `GENERATORS`.
        height: rows of the grid.
        width: columns of the grid.
        trained_on: generator of the training levels that held-out levels must differ from; None for the same one.

    Raises:
        InputError: training on `trained_on` may have met every layout of `generator`.
    """
    fixed = int(HELD_OUT_SHARE * 2**32)
    if height * width > _MOST_CELLS_COUNTED:
        return Split("layout", fixed, HELD_OUT_SHARE)
    hashes, shares = _layouts(trained_on or generator, height, width)
    if len(hashes) == 1:
        return Split("level", fixed, HELD_OUT_SHARE)
    threshold = held_out_threshold(hashes, shares)
    hashes, shares = _layouts(generator, height, width)
    num_held_out = int(np.searchsorted(hashes, threshold))
    if num_held_out == 0:
        raise InputError(
            f"generator={generator!r}: none of its {len(hashes)} layouts of {height}x{width} cells is held out from "
            f"training on {trained_on!r}; evaluate with the generator of the training, or on larger mazes"
        )
    return Split("layout", threshold, float(shares[num_held_out - 1]))


@functools.cache
def _layouts(generator: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the layouts that a generator makes, ascending, and how likely a layout's hash is at most each."""
    generate = GENERATORS[generator]

    def hash_of(key: jax.Array) -> jax.Array:
        return hash_layouts(legal_moves(generate(key, height, width))[None])[0]

    # Banks are often made under jit, where this must be a constant all the same.
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), _NUM_COUNTED)
        return cumulative_shares(np.asarray(jax.jit(jax.vmap(hash_of))(keys)))


def is_held_out(bank: LevelBank, split: Split) -> Bool[Array, " L"]:
    """Whether each level is held out from training."""
    hashes = hash_layouts(bank.moves)
    if split.unit == "level":
        hashes = mix(hashes ^ mix(bank.starts.astype(jnp.uint32) * 2 + 1) ^ mix(bank.goals.astype(jnp.uint32) * 2))
    return hashes < jnp.uint32(split.threshold)


def count_distinct(bank: LevelBank) -> tuple[int, int]:
    """How many different levels (walls, start and goal) a bank has, and how many different layouts (walls alone)."""
    moves, ends = np.asarray(bank.moves), np.stack([np.asarray(bank.starts), np.asarray(bank.goals)], axis=1)
    layouts = [row.tobytes() for row in moves]
    levels = {(layout, *row.tolist()) for layout, row in zip(layouts, ends, strict=True)}
    return len(levels), len(set(layouts))
