"""Data sets and tokenizers: reading them, turning texts into tokens, dealing them out in batches."""

from jaxrl_lm.data.encoding import EncodedText, encode_completion, encode_text
from jaxrl_lm.data.prompts import Prompt, encode_prompts, left_pad, prompt_order, read_prompts
from jaxrl_lm.data.ratings import labels_from_ratings, pairs_from_ratings
from jaxrl_lm.data.readers import (
    read_best_of_k,
    read_language_modeling,
    read_preferences,
    read_prompt_completions,
    read_ratings,
    read_unpaired_preferences,
)
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
from jaxrl_lm.data.writers import write_jsonl

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
    "labels_from_ratings",
    "left_pad",
    "load_tokenizer",
    "padding_token",
    "pairs_from_ratings",
    "prompt_order",
    "read_best_of_k",
    "read_language_modeling",
    "read_preferences",
    "read_prompt_completions",
    "read_prompts",
    "read_ratings",
    "read_unpaired_preferences",
    "stop_token_ids",
    "write_jsonl",
]
