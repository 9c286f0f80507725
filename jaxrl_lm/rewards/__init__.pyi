from .builtin import (
    REWARDS as REWARDS,
    RewardFunction as RewardFunction,
)
from .fingerprints import reward_fingerprint as reward_fingerprint
from .text_rewards import (
    load_reward as load_reward,
    score_completions as score_completions,
)
from .token_rewards import (
    token_rewards as token_rewards,
    value_mask_of as value_mask_of,
)
