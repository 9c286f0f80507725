from .causal_lm import (
    CausalLM as CausalLM,
    CausalLMOutput as CausalLMOutput,
)
from .encoder import (
    Encoder as Encoder,
    EncoderOutput as EncoderOutput,
)
from .families import FAMILIES as FAMILIES
from .params import (
    init_params as init_params,
    load_params as load_params,
    logical_axes as logical_axes,
    param_shapes as param_shapes,
)
from .pretrained import (
    RewardModel as RewardModel,
    from_pretrained as from_pretrained,
    model_from_config as model_from_config,
    open_pretrained as open_pretrained,
    save_pretrained as save_pretrained,
)
from .stack import (
    stack_layers as stack_layers,
    unstack_layers as unstack_layers,
)
