"""Complete many prompts with a model folder, batch by batch."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import checks, data, distributed, rollouts
from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.rollouts import SamplingConfig
from jaxrl_lm.training.compilation_cache import use_compilation_cache
from jaxrl_lm.training.language_model import load_model
from jaxrl_lm.types import PyTree

_SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "min_new_tokens")


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
    """How a model completes prompts outside of training.

    An option that is None is taken from the model folder's generation_config.json, or else the default given here.
    `do_sample: false` in the file means temperature 0. A file without `do_sample` samples, while Hugging Face's
    `generate` is greedy then; and one without `top_k` samples from all tokens, while Hugging Face's default is 50. Its
    stop tokens and its pad token are always used.

    Attributes:
        chat: wrap each plain-text prompt as a user message in the tokenizer's chat template.
        max_new_tokens: maximum length of a completion, in tokens; None uses generation_config.json, else 64.
        temperature: divides the logits; 0 is greedy decoding, so all completions of a prompt are equal; None uses
            generation_config.json, else 1.
        top_k: sample from the k most likely tokens only, 0 for all; None uses generation_config.json, else 0.
        top_p: sample from the smallest set of most likely tokens with a total probability of at least p, 1 for all;
            None uses generation_config.json, else 1.
        repetition_penalty: above 1 makes tokens of the prompt and of the completion so far less likely; None uses
            generation_config.json, else 1.
        min_new_tokens: minimum length of a completion; None uses generation_config.json, else 0.
        generation_config: use the sampling settings of the model's generation_config.json; its stop tokens are used
            either way.
        stop: single-token texts that end a completion, in addition to the model's own stop tokens.
        ignore_stops_before: number of first tokens among which stop tokens are ignored.
        batch_size: prompts per batch; completions do not depend on it.
        seed: random seed of sampling.
        dtype: dtype of activations.
    """

    chat: bool = False
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    min_new_tokens: int | None = None
    generation_config: bool = True
    stop: tuple[str, ...] = ()
    ignore_stops_before: int = 0
    batch_size: int = 16
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "batch_size")
        checks.seed(self.seed)
        SamplingConfig(**self._given)  # refuses what is out of range before a model is loaded

    @property
    def _given(self) -> dict[str, Any]:
        names = (*_SAMPLING, "ignore_stops_before")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def sampling(self, tokenizer: Any) -> SamplingConfig:
        """Sampling settings for a model with this tokenizer.

        Raises:
            InputError: a field of generation_config.json is out of range, or a text of `stop` is not one token.
        """
        defaults = data.generation_defaults(tokenizer)
        found = defaults.sampling if self.generation_config else {}
        data.warn_left_out(defaults, is_learning=False)
        if self.generation_config:
            data.warn_other_defaults(defaults, self._given)
        try:
            sampling = SamplingConfig(**(found | self._given))
        except InputError as error:
            raise InputError(f"{defaults.file}: {error}; correct it, or give the option") from error
        stops, pad = data.stop_token_ids(tokenizer, self.stop), data.padding_token(tokenizer)
        return replace(sampling, stop_tokens=stops, pad_token=pad)


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model that completes prompts.

    Attributes:
        model: a language model.
        params: its parameters.
        tokenizer: its tokenizer.
        config: settings.
        sampling: the settings of sampling, including those of the model folder.
    """

    model: CausalLM
    params: PyTree
    tokenizer: Any
    config: AnsweringConfig
    sampling: SamplingConfig

    def encode(self, prompts: list[Prompt]) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
            InputError: a prompt is too long or has no tokens, or the tokenizer cannot render a conversation.
        """
        asked = [prompt.as_chat() for prompt in prompts] if self.config.chat else prompts
        longest = rollouts.longest_prompt(self.model, self.sampling.max_new_tokens)
        return data.encode_prompts(asked, self.tokenizer, max_tokens=longest)

    def __call__(self, prompts: list[Prompt]) -> list[str]:
        """The completions as text.

        Raises:
            InputError: as `encode`.
        """
        ids = self.encode(prompts)
        batch_size, answers = min(self.config.batch_size, len(ids)), [""] * len(ids)
        by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for start in range(0, len(ids), batch_size):
            # The last batch is filled with its last prompt, so that it has the shape that was compiled for the others.
            places = np.minimum(np.arange(start, start + batch_size), len(ids) - 1)
            rows = np.asarray(by_length)[places]
            for row, answer in zip(rows, self._answer(ids, rows), strict=True):
                answers[row] = answer
        return answers

    def _answer(self, ids: list[list[int]], rows: np.ndarray) -> list[str]:
        """Completions of the prompts with these indices."""
        batch = [ids[row] for row in rows]
        width = data.bucket_width(map(len, batch), longest=max(map(len, ids)))
        input_ids, mask = data.left_pad(batch, pad_id=self.sampling.pad_token, width=width)
        # A row's key comes from its index among all prompts, so that completions do not depend on the batch size.
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(self.config.seed)))(jnp.asarray(rows))
        generation = rollouts.generate(self.model, self.params, input_ids, mask, keys, self.sampling)
        return rollouts.decode(self.tokenizer, distributed.on_host(generation))


def load_answerer(model_name: str | Path, config: AnsweringConfig) -> Answerer:
    """Load a model that completes prompts.

    Args:
        model_name: a folder or a Hugging Face hub id.
        config: settings.

    Raises:
        InputError: the model, its tokenizer or its generation_config.json is invalid.
    """
    use_compilation_cache()
    loaded = load_model(model_name, dtype=config.dtype)
    sampling = config.sampling(loaded.tokenizer)
    return Answerer(
        model=loaded.model, params=loaded.params, tokenizer=loaded.tokenizer, config=config, sampling=sampling
    )


def answer_prompts(model_name: str | Path, prompts: list[Prompt], config: AnsweringConfig) -> list[str]:
    """Load a model and complete each prompt.

    Args:
        model_name: a folder or a Hugging Face hub id.
        prompts: plain or conversational.
        config: settings.

    Returns:
        The completions as text.

    Raises:
        InputError: the model, a prompt or a setting is invalid.
    """
    return load_answerer(model_name, config)(prompts)
