"""How trajectories come about: token generation (and, later, environment scans)."""

from jaxrl_lm.rollouts.generation import Generation, decode, ended_by_stop, generate, longest_prompt
from jaxrl_lm.rollouts.sampling import SamplingConfig
from jaxrl_lm.rollouts.token_policy import (
    TokenObservations,
    answer_log_probs,
    make_evaluate,
    observe,
    token_trajectory,
)

__all__ = [
    "Generation",
    "SamplingConfig",
    "TokenObservations",
    "answer_log_probs",
    "decode",
    "ended_by_stop",
    "generate",
    "longest_prompt",
    "make_evaluate",
    "observe",
    "token_trajectory",
]
