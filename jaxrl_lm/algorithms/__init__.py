"""Learning algorithms: pairs of pure functions (init, update).

A new algorithm is one file and one line in `ALGORITHMS`; the contract tests then run over it.
"""

from jaxrl_lm.algorithms.ppo import PPOConfig, PPOHyperparams, PPOState, make_ppo

ALGORITHMS = {"ppo": (PPOConfig, make_ppo)}

__all__ = ["ALGORITHMS", "PPOConfig", "PPOHyperparams", "PPOState", "make_ppo"]
