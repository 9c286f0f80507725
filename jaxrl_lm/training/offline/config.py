"""Settings of all training on given examples."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxrl_lm import checks
from jaxrl_lm.algorithms.supervised import AdamWConfig
from jaxrl_lm.training.settings import ModelRunConfig, ModelStageConfig
from jaxrl_lm.types import SupervisedLearner


@dataclass(frozen=True, kw_only=True)
class ExamplesStageConfig(ModelStageConfig):
    """Settings of every stage that learns from examples, including reward models.

    Attributes:
        evaluation: file of held-out examples, in the form of the training data; None holds out a share of the data.
        evaluation_fraction: share of the training data to hold out if no file is given; all rows of a prompt are on
            the same side. 0 disables evaluation.
        evaluate_every: updates between evaluations; there is always one after the last update.
        num_epochs: passes over the data; may be fractional.
        num_updates: number of updates; None derives it from num_epochs.
        num_accumulated: batches per update (gradient accumulation).
        batch_size: rows, pairs or prompts per batch.
        optimizer: AdamW and its schedule.
        save_every: updates between checkpoints; the last update is always saved.
    """

    evaluation: str | None = None
    evaluation_fraction: float = 0.05
    evaluate_every: int = 50
    num_epochs: float = 1.0
    num_updates: int | None = None
    num_accumulated: int = 1
    batch_size: int = 8
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    save_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 1, "evaluate_every", "num_updates", "num_accumulated", "batch_size")
        checks.above(self, 0, "num_epochs")
        checks.finite(self, "num_epochs")
        checks.fraction(self, "evaluation_fraction")

    def length_setting(self) -> str | None:
        return None if self.optimizer.follows_length() else "num_updates"

    def updates_of(self, num_examples: int) -> int:
        """Number of updates: `num_updates`, or that of the epochs."""
        per_update = self.batch_size * self.num_accumulated
        return self.num_updates or math.ceil(self.num_epochs * num_examples / per_update)


@dataclass(frozen=True, kw_only=True)
class ExamplesRunConfig(ExamplesStageConfig, ModelRunConfig):
    """Settings of every run that learns from examples."""

    SHOWN: ClassVar[tuple[str, ...]] = ()
    """Metrics that are printed: the first three on the progress line, all in the table at the end of the run."""

    def make_learner(self, model: Any, *, num_updates: int) -> SupervisedLearner:
        """Make the algorithm for a model and a number of updates."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OfflineStageConfig(ExamplesStageConfig):
    """Settings of every stage that trains a language model on examples.

    Attributes:
        num_samples: held-out prompts completed before and after training, for the report.
        max_new_tokens: maximum length of these samples, in tokens.
    """

    num_samples: int = 8
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 1, "max_new_tokens")
        checks.at_least(self, 0, "num_samples")
