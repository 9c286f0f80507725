from .builtin import (
    REWARDS as REWARDS,
    RewardFunction as RewardFunction,
)
from .combined import CombinedReward as CombinedReward
from .fingerprints import reward_fingerprint as reward_fingerprint
from .scores import (
    Scores as Scores,
    TrainerState as TrainerState,
    mean_of_scored as mean_of_scored,
    score_batch as score_batch,
    score_completions as score_completions,
)
from .text_rewards import (
    load_reward as load_reward,
    load_rewards as load_rewards,
)
from .token_rewards import (
    token_rewards as token_rewards,
    value_mask_of as value_mask_of,
)
