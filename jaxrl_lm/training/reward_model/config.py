"""Settings of training a reward model."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from jaxrl_lm import checks
from jaxrl_lm.algorithms.reward_model import Objective, make_reward_model
from jaxrl_lm.algorithms.supervised import AdamWConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.bag_of_words import BagOfWordsConfig
from jaxrl_lm.rewards.scoring import apply_model
from jaxrl_lm.training.offline.config import ExamplesRunConfig, ExamplesStageConfig
from jaxrl_lm.types import SupervisedLearner


@dataclass(frozen=True, kw_only=True)
class NormalisationConfig:
    """Normalise scores to mean 0 and standard deviation 1 over samples, before (new heads) and after training.

    Attributes:
        num_samples: number of samples; Ziegler et al. use 256. 0 disables normalisation.
        policy: reference policy that completes training prompts: a folder or hub id. Prompts that it cannot read are
            skipped. None uses completions of the training data.
        max_new_tokens: maximum length of the policy's completions, in tokens.
        temperature: sampling temperature of the policy.
    """

    num_samples: int = 256
    policy: str | None = None
    max_new_tokens: int = 48
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.num_samples < 0 or self.num_samples == 1:
            raise InputError(f"normalisation.num_samples={self.num_samples} must be 0 (none) or at least 2")
        checks.at_least(self, 1, "max_new_tokens", prefix="normalisation.")
        checks.above(self, 0, "temperature", prefix="normalisation.")


@dataclass(frozen=True, kw_only=True)
class RewardModelStageConfig(ExamplesStageConfig):
    """Settings of training a reward model.

    Attributes:
        labels_tokenizer: folder or hub id of the tokenizer of labels given as token ids, such as OpenAI's; None uses
            that of `model`, which must then have all ids but one (padding). Not for binary labels, which are text.
        evaluation: held-out preferences of the same form. None holds out a share of the prompts.
        evaluation_fraction: share of the prompts to hold out.
        batch_size: rows per batch.
        max_tokens: maximum length of prompt and completion, in tokens; longer prompts are truncated on the left. None
            uses the model's context.
        new_head: initialise a new score head even if the model has one.
        head_std: standard deviation of a new head's weights; None for 1/sqrt(D + 1).
        optimizer: AdamW and its schedule; the defaults are those of Ziegler et al. with gradient clipping.
        normalisation: normalisation of the scores.
        baseline: bag-of-words baseline.
        evaluation_batch_size: texts per batch in evaluation.
    """

    labels_tokenizer: str | None = None
    evaluation_fraction: float = 0.1
    batch_size: int = 32
    max_tokens: int | None = None
    new_head: bool = False
    head_std: float | None = None
    optimizer: AdamWConfig = field(
        default_factory=lambda: AdamWConfig(
            learning_rate=5e-5, schedule="linear", warmup_fraction=0.0, weight_decay=0.0
        )
    )
    normalisation: NormalisationConfig = field(default_factory=NormalisationConfig)
    baseline: BagOfWordsConfig = field(default_factory=BagOfWordsConfig)
    evaluation_batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 1, "evaluation_batch_size")
        checks.at_least(self, 0, "head_std")
        remedy = "to train on all rows, give held-out ones with --evaluation FILE"
        checks.above(self, 0, "evaluation_fraction", why=remedy)


@dataclass(frozen=True, kw_only=True)
class RewardModelRunConfig(RewardModelStageConfig, ExamplesRunConfig):
    """Train a reward model on human preferences, and compare it with a bag of words on held-out ones.

    Attributes:
        model: initial model, a folder or a Hugging Face hub id: a language model of any family, a BERT, or a reward
            model.
        preferences: preference data: .jsonl, .json, .csv, .tsv, .parquet, each also .gz, or
            hub:NAME[[:CONFIG]:SPLIT]. Rows of prompt, chosen, rejected (pairwise), of query, sample0, sample1, ...,
            best (best_of_k), or of prompt, completion, label (binary).
        objective: "pairwise" (Bradley-Terry), "best_of_k" (softmax cross entropy) or "binary" (thumbs, logistic).
        limit: maximum number of rows to read; None reads all.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ("loss/total", "accuracy/batch", "evaluation/accuracy")

    preferences: str
    objective: Objective = "pairwise"
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(self, objective=Objective)
        if self.objective == "binary" and self.labels_tokenizer is not None:
            raise InputError(
                f"labels_tokenizer={self.labels_tokenizer!r}: labels of objective='binary' are text, never token ids; "
                "leave --labels-tokenizer out"
            )

    def make_learner(self, model: Any, *, num_updates: int) -> SupervisedLearner:
        return make_reward_model(self.objective, self.optimizer, partial(apply_model, model), num_updates=num_updates)
