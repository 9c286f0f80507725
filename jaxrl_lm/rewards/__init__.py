"""What trajectories earn: reward functions of texts."""

from jaxrl_lm.rewards.builtin import REWARDS, RewardFunction
from jaxrl_lm.rewards.text_rewards import load_reward, score_completions

__all__ = ["REWARDS", "RewardFunction", "load_reward", "score_completions"]
