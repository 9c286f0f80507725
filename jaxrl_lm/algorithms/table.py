"""The algorithms that learn from a `Trajectory`, by name: their settings and constructors."""

from jaxrl_lm.algorithms.ppo import PPOConfig, make_ppo

ALGORITHMS = {"ppo": (PPOConfig, make_ppo)}
