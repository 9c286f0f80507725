"""Learning algorithms: pairs of pure functions (init, update).

A new algorithm is one file and one line in `ALGORITHMS`; the contract tests then run over it.
"""

from jaxrl_lm.algorithms.dpo import DPOLossConfig, PairRows, make_dpo, make_pair_loss, sequence_log_probs
from jaxrl_lm.algorithms.group_policy import AnswerBatch, GroupPolicyConfig, make_group_policy
from jaxrl_lm.algorithms.ppo import PPOConfig, PPOHyperparams, PPOState, make_ppo
from jaxrl_lm.algorithms.reward_model import PreferenceBatch, make_reward_model
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
    "AnswerBatch",
    "DPOLossConfig",
    "GroupPolicyConfig",
    "LossFunction",
    "LossSums",
    "PPOConfig",
    "PPOHyperparams",
    "PPOState",
    "PairRows",
    "PreferenceBatch",
    "SupervisedAlgorithm",
    "SupervisedState",
    "make_dpo",
    "make_group_policy",
    "make_pair_loss",
    "make_ppo",
    "make_reward_model",
    "make_sft",
    "make_supervised",
    "sequence_log_probs",
    "sum_token_losses",
]
