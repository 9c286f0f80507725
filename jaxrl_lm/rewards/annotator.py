"""A simulated annotator: prefers completions by a gold reward, with Bradley-Terry noise."""

import numpy as np
from jaxtyping import Bool, Float

from jaxrl_lm.core.host_streams import Stream, host_generator
from jaxrl_lm.errors import InputError


def prefers_first(
    first_scores: Float[np.ndarray, " N"], second_scores: Float[np.ndarray, " N"], *, noise: float, seed: int
) -> Bool[np.ndarray, " N"]:
    """Whether the first completion of each pair is preferred.

    P(first) = 1 / (1 + exp(-(first - second) / noise)); without noise the higher score wins, and ties are random.

    Args:
        first_scores: gold rewards of the first completions.
        second_scores: gold rewards of the second completions.
        noise: in units of the gold reward, 0 or more.
        seed: random seed; equal seeds give equal results.

    Raises:
        InputError: the noise is negative.

    Reference: Bradley and Terry, 1952, Rank Analysis of Incomplete Block Designs.
    """
    if not noise >= 0:
        raise InputError(f"noise={noise} must be 0 (always the higher score) or more")
    difference = np.asarray(first_scores, np.float64) - np.asarray(second_scores, np.float64)
    uniform = host_generator(Stream.ANNOTATOR, seed).random(len(difference))
    if noise == 0:
        return np.where(difference == 0, uniform < 0.5, difference > 0)
    # u < sigmoid(d) as d > logit(u), which cannot overflow.
    return difference / noise > np.log(uniform) - np.log1p(-uniform)
