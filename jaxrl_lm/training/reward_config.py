"""Settings of training a reward model."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxrl_lm.algorithms import AdamWConfig
from jaxrl_lm.algorithms.reward_model import Objective
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.bag_of_words import BagOfWordsConfig
from jaxrl_lm.training.language_config import check_seed


@dataclass(frozen=True, kw_only=True)
class NormalisationConfig:
    """Scores are brought to mean 0 and standard deviation 1 over samples, before training (a new head) and after.

    Attributes:
        num_samples: how many; Ziegler et al. take 256. 0 leaves scores as they are.
        policy: the reference policy that answers training prompts, those that it can read; a folder or hub id. None
            takes answers of the training data for its samples.
        max_new_tokens: longest answer of the policy, tokens.
        temperature: of the policy's sampling.
    """

    num_samples: int = 256
    policy: str | None = None
    max_new_tokens: int = 48
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.num_samples < 0 or self.num_samples == 1:
            raise InputError(f"normalisation.num_samples={self.num_samples} must be 0 (none) or at least 2")
        if self.max_new_tokens < 1:
            raise InputError(f"normalisation.max_new_tokens={self.max_new_tokens} must be at least 1")
        if not self.temperature > 0:
            raise InputError(f"normalisation.temperature={self.temperature} must be above 0")


@dataclass(frozen=True, kw_only=True)
class RewardTrainingConfig:
    """Train a reward model on people's judgements, and compare it with a bag of words on held-out ones.

    Attributes:
        model: what to start from, a folder or a Hugging Face hub id: a language model of any family, a BERT, or a
            reward model.
        preferences: the judgements: .jsonl, .json, .csv, .tsv, .parquet, each also .gz, or
            hub:NAME[[:CONFIG]:SPLIT]. Rows of prompt, chosen, rejected (pairwise), of query, sample0, sample1, ...,
            best (best_of_k), or of prompt, completion, label (binary).
        out: folder of the run; must not exist yet, unless resuming.
        objective: "pairwise" (Bradley-Terry), "best_of_k" (softmax cross entropy) or "binary" (thumbs, logistic).
        labels_tokenizer: folder or hub id of the tokenizer whose ids the labels hold, as OpenAI's; None for that of
            `model`, which must then read all ids but one (padding). Not for binary labels, which are text.
        evaluation: held-out judgements of the same form. None holds out some of `preferences`, by prompt.
        evaluation_fraction: share of the prompts that are held out.
        limit: read no further than so many rows; None reads all.
        num_epochs: passes over the training rows; a part of one is allowed.
        num_updates: updates to make; None makes those of num_epochs.
        batch_size: rows a batch.
        num_accumulated: batches whose gradients are summed for one update.
        max_tokens: longest prompt with its answer, tokens; longer ones lose the prompt's beginning. None for what the
            model holds.
        new_head: draw a new score head even if the model has one.
        head_std: standard deviation of a new head's weights; None for 1/sqrt(D + 1).
        optimizer: AdamW and its schedule; the defaults are those of Ziegler et al. with a bound on the gradient.
        normalisation: of the scores.
        baseline: the bag of words.
        dtype: of activations; parameters, optimizer and losses are float32.
        remat: recompute activations in the backward pass: less memory, a third more work.
        seed: of the split, the rows' order, a new head and sampling.
        evaluate_every: updates between evaluations; the last update is always followed by one.
        evaluation_batch_size: texts scored at a time.
        save_every: updates between checkpoints.
        keep_checkpoints: checkpoints that stay.
        wandb_project: also log to this Weights & Biases project.
        resume: go on with the run in `out`.
    """

    model: str
    preferences: str
    out: str
    objective: Objective = "pairwise"
    labels_tokenizer: str | None = None
    evaluation: str | None = None
    evaluation_fraction: float = 0.1
    limit: int | None = None
    num_epochs: float = 1.0
    num_updates: int | None = None
    batch_size: int = 32
    num_accumulated: int = 1
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    seed: int = 0
    evaluate_every: int = 50
    evaluation_batch_size: int = 32
    save_every: int = 100
    keep_checkpoints: int = 2
    wandb_project: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise InputError(f"objective={self.objective!r} must be one of {', '.join(get_args(Objective))}")
        if self.objective == "binary" and self.labels_tokenizer is not None:
            raise InputError(
                f"labels_tokenizer={self.labels_tokenizer!r}: labels of objective='binary' are text, never token ids; "
                "leave --labels-tokenizer out"
            )
        counts = ("num_updates", "batch_size", "num_accumulated", "evaluate_every", "evaluation_batch_size")
        for name in (*counts, "save_every", "keep_checkpoints"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        check_seed(self.seed)
        if not self.num_epochs > 0:
            raise InputError(f"num_epochs={self.num_epochs} must be above 0")
        if not 0 < self.evaluation_fraction < 1:
            raise InputError(
                f"evaluation_fraction={self.evaluation_fraction} must lie between 0 and 1; "
                "to train on all rows, give held-out ones by --evaluation FILE"
            )
        if self.head_std is not None and not self.head_std >= 0:
            raise InputError(f"head_std={self.head_std} must be 0 or more")

    @property
    def is_extensible(self) -> bool:
        """Whether a finished run may be made longer: the learning rate must not follow the run's length."""
        return self.optimizer.schedule == "constant" and self.optimizer.warmup_fraction == 0
