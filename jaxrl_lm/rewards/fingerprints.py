"""Whether a reward is still what it was."""

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
    """A checksum that changes with what a reward says, as far as can be seen from outside.

    Returns:
        CRC32 of a learned reward's scale and parameters, of the weights and fingerprints of several rewards, or of the
        file that holds the code: a function's, that of the function inside a `partial`, or of the class of an object
        that can be called. 0 for built-in rewards, which their name tells, and where there is no file. What a
        `partial` or an object holds is not looked at.
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
    """The function, method or class whose file says what is computed, inside of decorators and `partial`."""
    code = inspect.unwrap(reward)
    while isinstance(code, partial):
        code = inspect.unwrap(code.func)
    return code if inspect.isroutine(code) or inspect.isclass(code) else type(code)
