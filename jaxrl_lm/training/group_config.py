"""Settings of reinforcement learning on a language model without a critic: RLOO and GRPO."""

from dataclasses import dataclass, field
from typing import Literal

from jaxrl_lm.algorithms import GroupPolicyConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.language_config import AnswerConfig, check_seed


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What RLOO and GRPO have in common: answer each prompt several times, compare, learn.

    Attributes:
        model: policy to start from, and reference: a folder or a Hugging Face hub id.
        prompts: .jsonl, .json, .csv, .tsv, .parquet, plain text (a prompt a line), each also .gz, or hub:NAME[:SPLIT].
        reward: a built-in's name, model:FOLDER (a reward model), module:function or file.py:function, called as
            f(prompts, completions, **columns) -> list[float].
        judges: further rewards by name, as `--judges gold good_manners`; they score the same answers for the curves
            `judge/NAME`, and are never learned from.
        out: folder of the run; must not exist yet, unless resuming.
        prompt_column: column of the prompts file that holds the prompt.
        num_updates: updates to make.
        batch_size: answers an update.
        group_size: answers to one prompt; divides batch_size.
        answers: how answers are drawn.
        dtype: of activations; parameters, optimizer and losses are float32.
        remat: recompute activations in the backward pass: less memory, a third more work.
        seed: of prompts' order, sampling and shuffling.
        save_every: updates between checkpoints.
        keep_checkpoints: checkpoints that stay.
        num_samples: prompts answered before and after training, for the report.
        wandb_project: also log to this Weights & Biases project.
        resume: go on with the run in `out`.
    """

    model: str
    prompts: str
    reward: str
    out: str
    judges: dict[str, str] = field(default_factory=dict)
    prompt_column: str = "prompt"
    num_updates: int = 100
    batch_size: int = 64
    group_size: int = 4
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    policy: GroupPolicyConfig = field(default_factory=GroupPolicyConfig)
    kl_coefficient: float = 0.05
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    seed: int = 0
    save_every: int = 50
    keep_checkpoints: int = 2
    num_samples: int = 8
    wandb_project: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("num_updates", "batch_size", "save_every", "keep_checkpoints", "num_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        check_seed(self.seed)
        if self.group_size < 2:
            raise InputError(f"group_size={self.group_size} must be at least 2: answers are compared with each other")
        for name, value in (("group_size", self.group_size), ("policy.num_minibatches", self.policy.num_minibatches)):
            if self.batch_size % value:
                raise InputError(f"{name}={value} does not divide batch_size={self.batch_size}; choose a divisor")
        if not self.kl_coefficient >= 0:
            raise InputError(f"kl_coefficient={self.kl_coefficient} must be 0 or more")
        if self.answers.score_at != "last_token":
            raise InputError(
                f"answers.score_at={self.answers.score_at!r}: without values an answer is scored whole; "
                "use 'last_token'"
            )

    @property
    def is_extensible(self) -> bool:
        """Whether a finished run may be made longer: the learning rate must not follow the run's length."""
        return self.policy.anneal_updates is not None


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """RLOO on a language model: REINFORCE, each answer's baseline the mean of the others to its prompt.

    Attributes:
        policy: the update.
        kl_coefficient: beta; each answer's reward is lessened by beta times its log-ratio of policy and reference.
    """

    policy: GroupPolicyConfig = field(default_factory=lambda: GroupPolicyConfig(token_weight="sum"))


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """GRPO on a language model: rewards standardised within the answers to a prompt.

    Attributes:
        policy: the update.
        kl_coefficient: beta, weight of the k3 estimate of the KL from the reference in the loss.
    """
