"""Answers of a model folder to many prompts, batch by batch."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_lm import data, models, rollouts
from jaxrl_lm.data import Prompt
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.rollouts import SamplingConfig


def answer_prompts(
    model_name: str | Path,
    prompts: list[Prompt],
    *,
    stop: tuple[str, ...] = (),
    batch_size: int = 16,
    seed: int = 0,
    dtype: Any = jnp.float32,
    **sampling: Any,
) -> list[str]:
    """Load a model and answer each prompt.

    Args:
        model_name: a folder or a Hugging Face hub id.
        prompts: plain or conversational.
        stop: texts of one token each that end an answer, beside the model's end-of-text token.
        batch_size: prompts answered at a time; answers do not depend on it.
        seed: of sampling.
        dtype: of activations.
        **sampling: fields of `SamplingConfig`, but for the tokens, which the tokenizer knows.

    Returns:
        the answers' texts.

    Raises:
        InputError: the model, a prompt or a setting is not what it must be.
    """
    folder = resolve_folder(model_name)
    model, params = models.from_pretrained(folder, dtype=dtype)
    tokenizer = data.load_tokenizer(folder, vocab_size=model.config.vocab_size)
    pad_id = data.padding_token(tokenizer)
    config = SamplingConfig(stop_tokens=data.stop_token_ids(tokenizer, stop), pad_token=pad_id, **sampling)
    longest = rollouts.longest_prompt(model, config.max_new_tokens)
    ids = data.encode_prompts(prompts, tokenizer, max_tokens=longest)
    width = max(map(len, ids))
    key, answers = jax.random.key(seed), []
    for start in range(0, len(ids), batch_size):
        rows = ids[start : start + batch_size]
        input_ids, mask = data.left_pad(rows, pad_id=pad_id, width=width)
        # A row's key comes from its place among all prompts, so that answers do not depend on the batch size.
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(start + jnp.arange(len(rows)))
        answers += rollouts.decode(tokenizer, rollouts.generate(model, params, input_ids, mask, keys, config))
    return answers
