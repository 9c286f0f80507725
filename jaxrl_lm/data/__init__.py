"""Data sets and tokenizers: reading them, turning texts into tokens, dealing them out in batches."""

from jaxrl_lm.data.encoding import EncodedText, encode_completion, encode_text
from jaxrl_lm.data.packing import PackedRows, fit_sequences, pack_sequences, plan_rows, take_rows
from jaxrl_lm.data.prompts import Prompt, encode_prompts, left_pad, prompt_order, read_prompts
from jaxrl_lm.data.ratings import labels_from_ratings, pairs_from_ratings
from jaxrl_lm.data.readers import (
    AssumedTokenizer,
    make_decoder,
    read_best_of_k,
    read_language_modeling,
    read_preferences,
    read_prompt_completions,
    read_ratings,
    read_records,
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
from jaxrl_lm.data.splits import hold_out
from jaxrl_lm.data.tokenizers import load_tokenizer, padding_token, stop_token_ids
from jaxrl_lm.data.writers import write_jsonl

__all__ = [
    "AssumedTokenizer",
    "BestOfK",
    "EncodedText",
    "LanguageModeling",
    "PackedRows",
    "Preference",
    "Prompt",
    "PromptCompletion",
    "Rating",
    "Text",
    "UnpairedPreference",
    "encode_completion",
    "encode_prompts",
    "encode_text",
    "fit_sequences",
    "hold_out",
    "labels_from_ratings",
    "left_pad",
    "load_tokenizer",
    "make_decoder",
    "pack_sequences",
    "padding_token",
    "pairs_from_ratings",
    "plan_rows",
    "prompt_order",
    "read_best_of_k",
    "read_language_modeling",
    "read_preferences",
    "read_prompt_completions",
    "read_prompts",
    "read_ratings",
    "read_records",
    "read_unpaired_preferences",
    "stop_token_ids",
    "take_rows",
    "write_jsonl",
]
