"""Settings of supervised fine-tuning and of direct preference optimization."""

from dataclasses import dataclass, field
from typing import Literal

from jaxrl_lm.algorithms import AdamWConfig, DPOLossConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.language_config import check_seed

DataForm = Literal["auto", "prompt-completion", "language-modeling"]


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """What all training of a language model on given examples has.

    Attributes:
        model: model to start from: a folder or a Hugging Face hub id.
        out: folder of the run; must not exist yet, unless resuming.
        evaluation: a file of examples to evaluate on, of the form of the training data; None holds out a share.
        evaluation_fraction: share of the training data that is held out for evaluation where no file is given; rows of
            one prompt stay on one side. 0 evaluates on nothing.
        evaluate_every: updates between evaluations; the last update is always followed by one.
        num_epochs: passes over the data.
        num_updates: updates to make; None makes those of num_epochs.
        num_accumulated: batches whose gradients are summed for one update.
        optimizer: AdamW and its schedule.
        dtype: of activations; parameters, optimizer and losses are float32.
        remat: recompute activations in the backward pass: less memory, a third more work.
        seed: of the split, the order and the sampling.
        save_every: updates between checkpoints.
        keep_checkpoints: checkpoints that stay.
        num_samples: held-out prompts answered before and after training, for the report.
        max_new_tokens: length of these answers, in tokens.
        wandb_project: also log to this Weights & Biases project.
        resume: go on with the run in `out`.
    """

    model: str
    out: str
    evaluation: str | None = None
    evaluation_fraction: float = 0.05
    evaluate_every: int = 50
    num_epochs: float = 1.0
    num_updates: int | None = None
    num_accumulated: int = 1
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    seed: int = 0
    save_every: int = 100
    keep_checkpoints: int = 2
    num_samples: int = 8
    max_new_tokens: int = 48
    wandb_project: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        names = ("evaluate_every", "num_updates", "num_accumulated", "save_every", "keep_checkpoints", "max_new_tokens")
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.num_epochs > 0:
            raise InputError(f"num_epochs={self.num_epochs} must be above 0")
        if not 0 <= self.evaluation_fraction < 1:
            raise InputError(f"evaluation_fraction={self.evaluation_fraction} must be at least 0 and below 1")
        if self.num_samples < 0:
            raise InputError(f"num_samples={self.num_samples} must be 0 or more")
        check_seed(self.seed)

    @property
    def is_extensible(self) -> bool:
        """Whether a finished run may be made longer: the learning rate must not follow the run's length."""
        return self.optimizer.schedule == "constant" and self.optimizer.warmup_fraction == 0


@dataclass(frozen=True, kw_only=True)
class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning of a language model on answers or texts, packed into rows.

    Attributes:
        data: rows with `prompt` and `completion`, or with `text` or `messages`: .jsonl, .json, .csv, .tsv, .parquet,
            each also .gz, or hub:NAME[[:CONFIG]:SPLIT].
        form: which of the two it is; "auto" takes that of the first row that has the columns of either.
        loss_on: learn the tokens of the "completion" only, or "all"; a text is learned whole in either case.
        batch_size: rows a batch.
        row_length: tokens a row; several sequences share one, longer ones are split (texts) or cut (completions).
            None takes the model's context, at most 1,024.
        packing_window: sequences that are packed together; more pack tighter.
    """

    data: str
    form: DataForm = "auto"
    loss_on: Literal["completion", "all"] = "completion"
    batch_size: int = 8
    row_length: int | None = None
    packing_window: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "packing_window"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if self.row_length is not None and self.row_length < 2:
            raise InputError(f"row_length={self.row_length} must be at least 2: a token is learned from one before it")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(SupervisedConfig):
    """Direct preference optimization of a language model, which is also the reference, on pairs of answers.

    Attributes:
        preferences: rows with `prompt`, `chosen` and `rejected`, or of another form that holds pairs: .jsonl, .json,
            .csv, .tsv, .parquet, each also .gz, or hub:NAME[[:CONFIG]:SPLIT].
        labels_tokenizer: folder or hub id of the tokenizer whose ids the labels hold, as OpenAI's; None for that of
            `model`, which must then read all ids but one (padding).
        batch_size: pairs a batch.
        max_tokens: longest prompt with its answer; longer answers lose their end. None takes the model's context, at
            most 1,024.
        optimizer: AdamW and its schedule.
        dpo: the loss.
    """

    preferences: str
    labels_tokenizer: str | None = None
    batch_size: int = 8
    max_tokens: int | None = None
    optimizer: AdamWConfig = field(default_factory=lambda: AdamWConfig(learning_rate=1e-6))
    dpo: DPOLossConfig = field(default_factory=DPOLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} must be at least 1")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise InputError(f"max_tokens={self.max_tokens} must be at least 2: a token is learned from one before it")
