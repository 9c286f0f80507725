"""Sampling of completions during training: how they are drawn, where they end, and how they are scored."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxrl_lm import checks, data
from jaxrl_lm.errors import InputError
from jaxrl_lm.rollouts.sampling import SamplingConfig, SamplingWeights

ScoreAt = Literal["last_token", "after_end"]

DEFAULT_LIMIT = 2.0
"""Largest importance weight where completions are always corrected."""


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """Sampling of completions during training.

    Attributes:
        max_new_tokens: maximum length of a completion, in tokens.
        temperature: sampling temperature, also used for all log-probabilities in learning.
        stop: single-token texts that end a completion, in addition to the model's own stop tokens (those of its
            generation_config.json and the tokenizer's end-of-text token). Nothing else of generation_config.json is
            used: completions are sampled from the full softmax, which matches their log-probabilities.
        ignore_stops_before: number of first tokens among which stop tokens are ignored.
        missing_stop_score: score that replaces the reward of a completion without a stop token; Ziegler et al. use
            -1. None keeps the reward.
        score_at: step that receives the score: the "last_token" of the completion, or "after_end", one step later, as
            in Ziegler et al.
        weights: parameters that sample: the "same" as learn, or those of the blocks' projections (not of experts)
            rounded to "int8", a quarter of float32's memory.
        ahead: sample the completions of an update during the one before, so that reward functions and sampling run
            at the same time. They come from parameters that are one update older.
        max_importance: largest weight pi / pi_sampling of a token in the policy loss, which corrects for completions
            that other parameters sampled. None: 2 with "int8" or ahead, otherwise no weights.
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    ignore_stops_before: int = 0
    missing_stop_score: float | None = None
    score_at: ScoreAt = "last_token"
    weights: SamplingWeights = "same"
    ahead: bool = False
    max_importance: float | None = None

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "max_new_tokens")
        checks.above(self, 0, "temperature", why="the policy learns from sampled completions")
        checks.finite(self, "temperature", "missing_stop_score")
        checks.above(self, 0, "max_importance")
        checks.one_of(self, score_at=ScoreAt, weights=SamplingWeights)

    @property
    def importance_limit(self) -> float | None:
        """Largest importance weight; None where tokens have none."""
        if self.max_importance is None and (self.weights == "int8" or self.ahead):
            return DEFAULT_LIMIT
        return self.max_importance

    def check_not_corrected(self) -> None:
        """Check that a learner may take the log-probabilities of decoding for those of the policy that learns.

        Raises:
            InputError: completions are corrected by both.
        """
        if self.importance_limit is not None:
            raise InputError(
                "rescore=False: answers are corrected for the policy that sampled them (answers.weights='int8', "
                "answers.ahead or answers.max_importance), which compares two log-probabilities; leave rescore on"
            )

    def paid_scores(self, scores: np.ndarray, is_stopped: np.ndarray) -> np.ndarray:
        """Scores used in training, `[B]`: `missing_stop_score` replaces those of completions without a stop token."""
        if self.missing_stop_score is None:
            return scores
        return np.where(is_stopped, scores, self.missing_stop_score).astype(np.float32)

    def sampling(self, tokenizer: Any) -> SamplingConfig:
        """Sampling settings for a model with this tokenizer.

        Raises:
            InputError: a text of `stop` is not one token.
        """
        data.warn_left_out(data.generation_defaults(tokenizer), is_learning=True)
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            stop_tokens=data.stop_token_ids(tokenizer, self.stop),
            ignore_stops_before=self.ignore_stops_before,
            pad_token=data.padding_token(tokenizer),
            weights=self.weights,
        )
