"""Settings of every run, apart from what runs them: they are read without loading a model, for `--help` say."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaxrl_lm import checks

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What a run can be given that is one of several in a chain, which adds the rest.

    Attributes:
        save_every: updates between checkpoints; the last one is always saved.
        keep_checkpoints: checkpoints that are kept.
        wandb_project: also log to this Weights & Biases project.
    """

    save_every: int = 50
    keep_checkpoints: int = 2
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "save_every", "keep_checkpoints")


@dataclass(frozen=True, kw_only=True)
class RunConfig(StageConfig):
    """What every run has.

    Attributes:
        out: folder of the run; must not exist yet, unless resuming.
        seed: of everything drawn.
        resume: go on with the run in `out`.
    """

    out: str
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.seed(self.seed)

    def saved(self) -> dict[str, Any]:
        """What config.yaml holds: everything but `resume`, which is no setting of the run."""
        return {name: value for name, value in asdict(self).items() if name != "resume"}

    def length_setting(self) -> str | None:
        """The setting that may be raised to make a finished run longer; None if a schedule follows the run's length."""
        return None

    def free_settings(self) -> frozenset[str]:
        """What may differ between a run and its resumption without changing any number."""
        return frozenset({"save_every", "keep_checkpoints", "wandb_project"})


@dataclass(frozen=True, kw_only=True)
class ModelStageConfig(StageConfig):
    """What a stage that trains a language model can be given.

    Attributes:
        dtype: of activations; parameters, optimizer and losses are float32.
        remat: recompute activations in the backward pass: less memory, a third more work.
    """

    dtype: Dtype = "float32"
    remat: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelRunConfig(ModelStageConfig, RunConfig):
    """What every run that trains a language model has.

    Attributes:
        model: model to start from: a folder or a Hugging Face hub id.
    """

    model: str
