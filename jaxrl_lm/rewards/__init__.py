"""What trajectories earn: reward functions of texts, and what each token gets of them."""

from jaxrl_lm.rewards.builtin import REWARDS, RewardFunction
from jaxrl_lm.rewards.fingerprints import reward_fingerprint
from jaxrl_lm.rewards.text_rewards import load_reward, score_completions
from jaxrl_lm.rewards.token_rewards import token_rewards, value_mask_of

__all__ = [
    "REWARDS",
    "RewardFunction",
    "load_reward",
    "reward_fingerprint",
    "score_completions",
    "token_rewards",
    "value_mask_of",
]
