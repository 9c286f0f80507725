"""Learning algorithms: pairs of pure functions (init, update).

A new algorithm is one file and one line in `ALGORITHMS`; the contract tests then run over it.
"""

from jaxrl_lm.algorithms.ppo import PPOConfig, PPOHyperparams, PPOState, make_ppo
from jaxrl_lm.algorithms.sft import make_sft, sum_token_losses
from jaxrl_lm.algorithms.supervised import (
    AdamWConfig,
    LossFunction,
    LossSums,
    SupervisedAlgorithm,
    SupervisedState,
    make_supervised,
)

ALGORITHMS = {"ppo": (PPOConfig, make_ppo)}

__all__ = [
    "ALGORITHMS",
    "AdamWConfig",
    "LossFunction",
    "LossSums",
    "PPOConfig",
    "PPOHyperparams",
    "PPOState",
    "SupervisedAlgorithm",
    "SupervisedState",
    "make_ppo",
    "make_sft",
    "make_supervised",
    "sum_token_losses",
]
