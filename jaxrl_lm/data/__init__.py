"""Data sets: reading them, turning them into tokens, dealing them out in batches."""

from jaxrl_lm.data.prompts import Prompt, encode_prompts, left_pad, prompt_order, read_prompts

__all__ = ["Prompt", "encode_prompts", "left_pad", "prompt_order", "read_prompts"]
