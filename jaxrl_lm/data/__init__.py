"""Data sets and tokenizers: reading them, turning texts into tokens, dealing them out in batches."""

from jaxrl_lm.data.encoding import EncodedText, encode_completion, encode_text
from jaxrl_lm.data.prompts import Prompt, encode_prompts, left_pad, prompt_order, read_prompts
from jaxrl_lm.data.records import (
    BestOfK,
    LanguageModeling,
    Preference,
    PromptCompletion,
    Rating,
    Text,
    UnpairedPreference,
)
from jaxrl_lm.data.tokenizers import load_tokenizer, padding_token, stop_token_ids

__all__ = [
    "BestOfK",
    "EncodedText",
    "LanguageModeling",
    "Preference",
    "Prompt",
    "PromptCompletion",
    "Rating",
    "Text",
    "UnpairedPreference",
    "encode_completion",
    "encode_prompts",
    "encode_text",
    "left_pad",
    "load_tokenizer",
    "padding_token",
    "prompt_order",
    "read_prompts",
    "stop_token_ids",
]
