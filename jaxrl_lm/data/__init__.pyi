from .encoding import (
    EncodedText as EncodedText,
    encode_completion as encode_completion,
    encode_text as encode_text,
)
from .generation_config import (
    GenerationDefaults as GenerationDefaults,
    read_generation_config as read_generation_config,
    warn_left_out as warn_left_out,
    warn_other_defaults as warn_other_defaults,
)
from .packing import (
    PackedRows as PackedRows,
    fit_sequences as fit_sequences,
    pack_sequences as pack_sequences,
    plan_rows as plan_rows,
)
from .prompts import (
    Prompt as Prompt,
    bucket_width as bucket_width,
    encode_prompts as encode_prompts,
    left_pad as left_pad,
    prompt_order as prompt_order,
    read_prompts as read_prompts,
)
from .ratings import (
    labels_from_ratings as labels_from_ratings,
    pairs_from_ratings as pairs_from_ratings,
)
from .readers import (
    AssumedTokenizer as AssumedTokenizer,
    make_decoder as make_decoder,
    read_best_of_k as read_best_of_k,
    read_language_modeling as read_language_modeling,
    read_preferences as read_preferences,
    read_prompt_completions as read_prompt_completions,
    read_ratings as read_ratings,
    read_records as read_records,
    read_unpaired_preferences as read_unpaired_preferences,
)
from .records import (
    BestOfK as BestOfK,
    Conversation as Conversation,
    LanguageModeling as LanguageModeling,
    Preference as Preference,
    PromptCompletion as PromptCompletion,
    Rating as Rating,
    Text as Text,
    UnpairedPreference as UnpairedPreference,
    template_columns as template_columns,
)
from .splits import hold_out as hold_out
from .tokenizers import (
    generation_defaults as generation_defaults,
    load_tokenizer as load_tokenizer,
    padding_token as padding_token,
    save_tokenizer as save_tokenizer,
    stop_token_ids as stop_token_ids,
)
from .writers import write_jsonl as write_jsonl
