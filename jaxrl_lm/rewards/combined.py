"""Several reward functions as one: a weighted sum, as TRL's `reward_funcs` and `reward_weights`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from jaxrl_lm.rewards.builtin import RewardFunction
from jaxrl_lm.rewards.calls import OFFERED, RewardCall, call_rewards


@dataclass(frozen=True, kw_only=True)
class CombinedReward:
    """The weighted sum of several rewards; a function that returns None is skipped.

        r_i = sum_f w_f r_fi, over the functions f that return a reward for completion i

    Attributes:
        functions: reward functions by the name of their metric.
        weights: one per function.
    """

    functions: Mapping[str, RewardFunction]
    weights: tuple[float, ...]

    def __call__(self, prompts: list[Any], completions: list[Any], **others: Any) -> list[float | None]:
        """The weighted sums; None if no function returns a reward."""
        offered = {name: others.pop(name) for name in OFFERED if name in others}
        call = RewardCall(prompts=prompts, completions=completions, columns=others, offered=offered)
        totals = self.total(call_rewards(self.functions, call))
        return [None if np.isnan(total) else float(total) for total in totals]

    def total(self, table: Float32[np.ndarray, "F B"]) -> Float[np.ndarray, " B"]:
        """Weighted sums over the functions; NaN where all entries are NaN.

        Args:
            table: reward of each completion by each function; NaN where it returned None.
        """
        weighted = np.array(self.weights, np.float32)[:, None] * table
        return np.where(np.isnan(table).all(axis=0), np.nan, np.nansum(weighted, axis=0))
