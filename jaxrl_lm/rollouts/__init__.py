"""How trajectories come about: token generation (and, later, environment scans)."""

from jaxrl_lm.rollouts.generation import Generation, generate
from jaxrl_lm.rollouts.sampling import SamplingConfig

__all__ = ["Generation", "SamplingConfig", "generate"]
