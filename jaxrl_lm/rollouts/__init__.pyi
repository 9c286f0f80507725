from .answers import AnswerConfig as AnswerConfig
from .generation import (
    Generation as Generation,
    answer_tokens as answer_tokens,
    decode as decode,
    ended_by_stop as ended_by_stop,
    generate as generate,
    longest_prompt as longest_prompt,
    packed as packed,
)
from .sampling import SamplingConfig as SamplingConfig
from .token_policy import (
    TokenObservations as TokenObservations,
    answer_log_probs as answer_log_probs,
    make_evaluate as make_evaluate,
    observe as observe,
    reference_of as reference_of,
    rollout_error as rollout_error,
    token_trajectory as token_trajectory,
)
from .work import (
    count_generation as count_generation,
    generation_flops as generation_flops,
)
