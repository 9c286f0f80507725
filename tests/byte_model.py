"""A tiny GPT-2 over bytes, made on the spot: something to train in seconds."""

from pathlib import Path

import jax
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import GPT2Config, PreTrainedTokenizerFast

from jaxrl_lm.models import CausalLM, init_params, save_pretrained
from jaxrl_lm.models.families import family_of

END_OF_TEXT = "<|endoftext|>"


def write_byte_model(
    folder: Path,
    *,
    num_layers: int = 2,
    model_size: int = 64,
    num_heads: int = 4,
    context: int = 128,
    seed: int = 0,
) -> None:
    """Write a randomly initialised GPT-2 with one token a byte, as an ordinary Hugging Face folder.

    Args:
        folder: made if it is not there.
        num_layers: number of blocks.
        model_size: D.
        num_heads: N.
        context: longest sequence, in bytes.
        seed: of the weights.
    """
    tokenizer = _byte_tokenizer()
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert isinstance(end_of_text, int)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=model_size,
        n_layer=num_layers,
        n_head=num_heads,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    ).to_dict()
    model = CausalLM(family_of("gpt2").config_from_hf(config))
    params = init_params(model, jax.random.key(seed))
    save_pretrained(folder, model, params, format="flax")
    tokenizer.save_pretrained(folder)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
