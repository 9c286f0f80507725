from .dpo import (
    DPOLossConfig as DPOLossConfig,
    make_dpo as make_dpo,
)
from .group_policy import (
    AnswerBatch as AnswerBatch,
    GroupPolicyConfig as GroupPolicyConfig,
    GRPOConfig as GRPOConfig,
    RLOOConfig as RLOOConfig,
    make_grpo as make_grpo,
    make_rloo as make_rloo,
)
from .language_ppo import (
    KLConfig as KLConfig,
    LanguagePPOConfig as LanguagePPOConfig,
    make_language_ppo as make_language_ppo,
)
from .ppo import (
    PPOConfig as PPOConfig,
    PPOHyperparams as PPOHyperparams,
    PPOState as PPOState,
    make_ppo as make_ppo,
)
from .reward_model import (
    PreferenceBatch as PreferenceBatch,
    make_reward_model as make_reward_model,
)
from .sequences import (
    ReferencedRows as ReferencedRows,
    sequence_log_probs as sequence_log_probs,
)
from .sft import (
    make_sft as make_sft,
    sum_token_losses as sum_token_losses,
)
from .supervised import (
    AdamWConfig as AdamWConfig,
    LossFunction as LossFunction,
    LossSums as LossSums,
    SupervisedState as SupervisedState,
    make_supervised as make_supervised,
)
from .table import ALGORITHMS as ALGORITHMS
