"""Flax language models and Hugging Face checkpoints, in and out."""

from jaxrl_lm.models.causal_lm import CausalLM, CausalLMOutput
from jaxrl_lm.models.families import FAMILIES
from jaxrl_lm.models.pretrained import from_pretrained, save_pretrained

__all__ = ["FAMILIES", "CausalLM", "CausalLMOutput", "from_pretrained", "save_pretrained"]
