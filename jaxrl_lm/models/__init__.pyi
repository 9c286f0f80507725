from .causal_lm import (
    CausalLM as CausalLM,
    CausalLMOutput as CausalLMOutput,
)
from .encoder import (
    Encoder as Encoder,
    EncoderOutput as EncoderOutput,
)
from .families import FAMILIES as FAMILIES
from .pretrained import (
    RewardModel as RewardModel,
    from_pretrained as from_pretrained,
    save_pretrained as save_pretrained,
)
