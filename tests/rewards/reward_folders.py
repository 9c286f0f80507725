"""Tiny reward models as folders: a decoder over bytes, and a BERT over a handful of words."""

from pathlib import Path

import jax
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import (
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from jaxrl_lm.models import Encoder, from_pretrained, init_params, reward_heads, save_pretrained
from jaxrl_lm.models.families import family_of
from tests.byte_model import write_byte_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "good", "bad", "long", "the", "end"]
CONTEXT = 32


def write_decoder(folder: Path, *, scale: reward_heads.RewardScale | None = None) -> None:
    """A GPT-2 over bytes with a random score head."""
    base = folder.with_name(folder.name + "-base")
    write_byte_model(base, num_layers=1, model_size=16, num_heads=2, context=CONTEXT)
    model, params = from_pretrained(base, "reward", key=jax.random.key(1))
    save_pretrained(folder, model, params)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    if scale is not None:
        reward_heads.write_scale(folder, scale)


def write_chat_decoder(folder: Path, *, template: str, is_pad_in_config: bool = True) -> None:
    """A Llama of torch's with random weights and a score head, over bytes, with a chat template."""
    base = folder.with_name(folder.name + "-base")
    write_byte_model(base, num_layers=1, model_size=16, num_heads=2, context=16)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        num_labels=1,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if is_pad_in_config else None,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)


def write_encoder(folder: Path) -> None:
    """A BERT over `WORDS` with a random score head; both segments matter."""
    tokenizer = _word_tokenizer()
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        num_labels=1,
        initializer_range=0.5,
    ).to_dict()
    model = Encoder(family_of("bert").config_from_hf(config))
    params = init_params(model, jax.random.key(2))
    save_pretrained(folder, model, params)
    tokenizer.save_pretrained(folder)


def _word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(tokenizer_models.WordPiece(vocabulary, unk_token="[UNK]"))  # pyright: ignore
    tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # pyright: ignore
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
