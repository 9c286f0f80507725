"""Answers of a model folder to many prompts, batch by batch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl_lm import checks, data, rollouts
from jaxrl_lm.data import Prompt
from jaxrl_lm.models import CausalLM
from jaxrl_lm.rollouts import SamplingConfig
from jaxrl_lm.training.language_model import load_model
from jaxrl_lm.types import PyTree


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
    """How a model answers prompts outside of learning.

    Attributes:
        chat: wrap each prompt that is plain text as a user's message in the tokenizer's chat template.
        max_new_tokens: length of the longest answer, in tokens.
        temperature: divides the logits; 0 takes the likeliest token, so that all answers to a prompt are equal.
        top_k: draw from the k likeliest tokens only; 0 for all.
        top_p: draw from the smallest set of likeliest tokens whose probability reaches p; 1 for all.
        min_new_tokens: no answer ends before so many tokens.
        stop: texts of one token each that end an answer, beside the model's end-of-text token.
        ignore_stops_before: stop tokens among the first so many tokens end nothing.
        batch_size: prompts answered at a time; answers do not depend on it.
        seed: of sampling.
        dtype: of activations.
    """

    chat: bool = False
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_stops_before: int = 0
    batch_size: int = 16
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "batch_size")
        checks.seed(self.seed)
        self.sampling()  # refuses what is out of range before a model is loaded

    def sampling(self, stop_tokens: tuple[int, ...] = (), pad_token: int = 0) -> SamplingConfig:
        """The same with the tokens that the tokenizer knows.

        Raises:
            InputError: a field is out of range.
        """
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_new_tokens=self.min_new_tokens,
            ignore_stops_before=self.ignore_stops_before,
            stop_tokens=stop_tokens,
            pad_token=pad_token,
        )


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model that answers prompts.

    Attributes:
        model: a language model.
        params: its parameters.
        tokenizer: its own.
        config: how it answers.
    """

    model: CausalLM
    params: PyTree
    tokenizer: Any
    config: AnsweringConfig

    def encode(self, prompts: list[Prompt]) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            InputError: a prompt is too long or has no tokens, or the tokenizer cannot render a conversation.
        """
        asked = [prompt.as_chat() for prompt in prompts] if self.config.chat else prompts
        longest = rollouts.longest_prompt(self.model, self.config.max_new_tokens)
        return data.encode_prompts(asked, self.tokenizer, max_tokens=longest)

    def __call__(self, prompts: list[Prompt]) -> list[str]:
        """The answers' texts.

        Raises:
            InputError: as `encode`, or a stop text is not one token.
        """
        config, tokenizer = self.config, self.tokenizer
        sampling = config.sampling(data.stop_token_ids(tokenizer, config.stop), data.padding_token(tokenizer))
        ids = self.encode(prompts)
        width = max(map(len, ids))
        key, answers = jax.random.key(config.seed), []
        for start in range(0, len(ids), config.batch_size):
            rows = ids[start : start + config.batch_size]
            input_ids, mask = data.left_pad(rows, pad_id=sampling.pad_token, width=width)
            # A row's key comes from its place among all prompts, so that answers do not depend on the batch size.
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(start + jnp.arange(len(rows)))
            found = rollouts.generate(self.model, self.params, input_ids, mask, keys, sampling)
            answers += rollouts.decode(tokenizer, found)
        return answers


def load_answerer(model_name: str | Path, config: AnsweringConfig) -> Answerer:
    """Load a model that is to answer prompts.

    Args:
        model_name: a folder or a Hugging Face hub id.
        config: how.

    Raises:
        InputError: the model or its tokenizer is not what it must be.
    """
    loaded = load_model(model_name, dtype=config.dtype)
    return Answerer(model=loaded.model, params=loaded.params, tokenizer=loaded.tokenizer, config=config)


def answer_prompts(model_name: str | Path, prompts: list[Prompt], config: AnsweringConfig) -> list[str]:
    """Load a model and answer each prompt.

    Args:
        model_name: a folder or a Hugging Face hub id.
        prompts: plain or conversational.
        config: how.

    Returns:
        the answers' texts.

    Raises:
        InputError: the model, a prompt or a setting is not what it must be.
    """
    return load_answerer(model_name, config)(prompts)
