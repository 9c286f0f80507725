"""How a policy in training answers: the sampling, where an answer ends, and what it is paid for."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxrl_lm import checks, data
from jaxrl_lm.rollouts.sampling import SamplingConfig

ScoreAt = Literal["last_token", "after_end"]


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """How answers are drawn and where they end.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: of sampling, and of every log-probability used in learning.
        stop: texts of one token each that end an answer, in addition to the model's own stop tokens, which are those
            of its generation_config.json and the tokenizer's end-of-text token. Nothing else of generation_config.json
            is used: answers are drawn from the whole softmax, as their log-probabilities say.
        ignore_stops_before: stop tokens among the first so many tokens end nothing.
        missing_stop_score: score of an answer that no stop token ended, in place of its reward; Ziegler et al. use
            -1. None leaves the reward.
        score_at: where the score is paid: at the answer's "last_token", or "after_end", one step after it, as
            Ziegler et al. do.
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    ignore_stops_before: int = 0
    missing_stop_score: float | None = None
    score_at: ScoreAt = "last_token"

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "max_new_tokens")
        checks.above(self, 0, "temperature", why="the policy learns from drawn answers")
        checks.one_of(self, score_at=ScoreAt)

    def paid_scores(self, scores: np.ndarray, is_stopped: np.ndarray) -> np.ndarray:
        """What training pays for answers with these scores, `[B]`: see `missing_stop_score`."""
        if self.missing_stop_score is None:
            return scores
        return np.where(is_stopped, scores, self.missing_stop_score).astype(np.float32)

    def sampling(self, tokenizer: Any) -> SamplingConfig:
        """How a model with this tokenizer draws its answers.

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
        )
