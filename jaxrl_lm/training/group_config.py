"""Settings of reinforcement learning on a language model without a critic: RLOO and GRPO."""

from dataclasses import dataclass, field

from jaxrl_lm.algorithms import GroupPolicyConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.language_config import AnswerTrainingConfig


@dataclass(frozen=True, kw_only=True)
class GroupConfig(AnswerTrainingConfig):
    """What RLOO and GRPO have in common: answer each prompt several times, compare, learn.

    Attributes:
        group_size: answers to one prompt; divides batch_size.
        policy: the update.
        kl_coefficient: beta.
    """

    group_size: int = 4
    policy: GroupPolicyConfig = field(default_factory=GroupPolicyConfig)
    kl_coefficient: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
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
