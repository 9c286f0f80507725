"""Flax language models and Hugging Face checkpoints, in and out."""

from jaxrl_lm.models.causal_lm import CausalLM, CausalLMOutput
from jaxrl_lm.models.encoder import Encoder, EncoderOutput
from jaxrl_lm.models.families import FAMILIES
from jaxrl_lm.models.pretrained import RewardModel, from_pretrained, save_pretrained

__all__ = [
    "FAMILIES",
    "CausalLM",
    "CausalLMOutput",
    "Encoder",
    "EncoderOutput",
    "RewardModel",
    "from_pretrained",
    "save_pretrained",
]
