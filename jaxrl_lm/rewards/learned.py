"""A reward model as a reward function: maps texts to normalised scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxrl_lm import data, models
from jaxrl_lm.data.records import Text
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import RewardModel
from jaxrl_lm.models.pretrained import resolve_folder, tokenizer_folder
from jaxrl_lm.models.reward_heads import RewardScale, read_scale
from jaxrl_lm.rewards.scoring import TextReader, make_reader, score_rows
from jaxrl_lm.types import PyTree


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedReward:
    """Scores completions with a reward model; has the signature of a reward function.

    Texts are tokenised with the reward model's own tokenizer, which need not be the policy's. The prompt of a text that
    is too long is truncated on the left.

    Attributes:
        model: the module.
        params: its parameters.
        reader: converts texts to the model's input.
        scale: normalisation of the scores.
        batch_size: texts per batch.
    """

    model: RewardModel
    params: PyTree
    reader: TextReader
    scale: RewardScale
    batch_size: int

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        """Score each completion.

        Args:
            prompts: plain or conversational.
            completions: one per prompt; may be empty.
            **columns: other columns of the data set; not used.

        Returns:
            One score per completion, in units of the reference samples' standard deviation.
        """
        if len(prompts) != len(completions):
            raise InputError(f"completions: {len(completions)} for {len(prompts)} prompts; give one per prompt")
        rows = [self.reader.encode(*each) for each in zip(prompts, completions, strict=True)]
        scores = score_rows(self.model, self.params, self.reader, rows, batch_size=self.batch_size)
        return [float(score) for score in scores + self.scale.offset]


def load_reward(
    folder_or_hub_id: str | Path, *, batch_size: int = 32, dtype: Any = jnp.float32, max_tokens: int | None = None
) -> LearnedReward:
    """Load a reward model, as `jaxrl-lm reward-model` or Hugging Face's classes saved it.

    Args:
        folder_or_hub_id: a folder with config.json, weights with a score head of one output, and a tokenizer.
        batch_size: texts per batch.
        dtype: dtype of the activations.
        max_tokens: maximum length of a text, in tokens; None for that of the model's training, or the model's context
            if the folder does not have it.

    Raises:
        InputError: the folder holds no reward model, or its tokenizer is missing.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    folder = resolve_folder(folder_or_hub_id)
    model, params = models.from_pretrained(folder, "reward", dtype=dtype)
    tokenizer = data.load_tokenizer(tokenizer_folder(folder), vocab_size=model.config.vocab_size)
    scale = read_scale(folder)
    return LearnedReward(
        model=model,
        params=params,
        reader=make_reader(model, tokenizer, scale.max_tokens if max_tokens is None else max_tokens),
        scale=scale,
        batch_size=batch_size,
    )
