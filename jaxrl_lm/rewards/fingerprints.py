"""Detect whether a reward has changed."""

import inspect
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from jaxrl_lm.core.checksums import checksum_arrays, checksum_value
from jaxrl_lm.rewards.builtin import REWARDS, RewardFunction
from jaxrl_lm.rewards.combined import CombinedReward
from jaxrl_lm.rewards.learned import LearnedReward


def reward_fingerprint(reward: RewardFunction) -> int:
    """A checksum that changes when a reward changes, as far as this can be detected.

    Returns:
        CRC32 of the scale and parameters of a learned reward, of the weights and fingerprints of a combined one, or of
        the source file of a function, of the function in a `partial`, or of the class of a callable object. 0 for
        built-in rewards, which their name identifies, and if there is no file. The contents of a `partial` or object
        are not included.
    """
    if isinstance(reward, CombinedReward):
        parts = [(name, reward_fingerprint(function)) for name, function in reward.functions.items()]
        return checksum_value((parts, reward.weights))
    if isinstance(reward, LearnedReward):
        return checksum_value((reward.scale, checksum_arrays(reward.params)))
    if reward in REWARDS.values():
        return 0
    try:
        file = inspect.getsourcefile(_code_of(reward))
    except TypeError:
        return 0
    return zlib.crc32(Path(file).read_bytes()) if file is not None and Path(file).is_file() else 0


def _code_of(reward: Any) -> Any:
    """The function, method or class that computes the reward, inside of decorators and `partial`."""
    code = inspect.unwrap(reward)
    while isinstance(code, partial):
        code = inspect.unwrap(code.func)
    return code if inspect.isroutine(code) or inspect.isclass(code) else type(code)
