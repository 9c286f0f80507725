"""Settings of a plan."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jaxrl_lm import checks
from jaxrl_lm.algorithms.group_policy import GroupPolicyConfig
from jaxrl_lm.algorithms.minibatches import check_micro_batches
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.distributed.config import MeshConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.offline.dpo import DPORunConfig
from jaxrl_lm.training.offline.sft import SFTRunConfig
from jaxrl_lm.training.online.config import GRPORunConfig, PPORunConfig, RLOORunConfig
from jaxrl_lm.training.reward_model.config import RewardModelRunConfig
from jaxrl_lm.training.settings import Dtype, Remat

PlannedAlgorithm = Literal["ppo", "rloo", "grpo", "sft", "dpo", "reward-model"]

ONLINE: dict[str, Any] = {"ppo": PPORunConfig, "rloo": RLOORunConfig, "grpo": GRPORunConfig}
OFFLINE: dict[str, Any] = {"sft": SFTRunConfig, "dpo": DPORunConfig, "reward-model": RewardModelRunConfig}


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Tell whether a run fits on a TPU slice, without a TPU: compile its programs and read what they need.

    Needs the package libtpu (`pip install 'jaxrl-lm[plan]'`); without it the programs are compiled for as many virtual
    CPU devices, whose temporary memory differs from that of TPUs.

    Attributes:
        model: a folder with config.json (weights are not read), a hub id, or one of gpt2, smollm2-135m, qwen3-0.6b,
            qwen3-4b, llama-3-8b, llama-3-70b.
        slice: a TPU slice, such as v5e-16, or a generation (v4, v5e, v5p, v6e, tpu7x), whose smallest slice that fits
            is searched. As in Google's names, the number counts cores for v4, v5p and tpu7x, chips for v5e and v6e.
        algorithm: what is trained.
        batch_size: completions per update (online), or rows or pairs per batch.
        prompt_tokens: tokens per prompt.
        new_tokens: tokens per completion.
        micro_batch_size: completions per forward and backward pass of PPO, RLOO or GRPO; None for the whole batch. Of a
            run with minibatches and without micro-batches, give the size of a minibatch.
        group_size: completions per prompt of RLOO and GRPO; None takes their default.
        critic: PPO's value function: a "head" on the policy, or a "model" of the same size.
        reward_model: whether a reward model of the same size is on the devices.
        dtype: dtype of activations; parameters, gradients and optimizer are float32.
        remat: activations that the backward pass recomputes.
        mesh: arrangement of the devices.
        full_effort: compile as for running, which takes four times as long; the memory of the default is up to a tenth
            lower.
        out: also write the plan as JSON to this file.
    """

    model: str
    slice: str = "v5e"
    algorithm: PlannedAlgorithm = "ppo"
    batch_size: int = 64
    prompt_tokens: int = 512
    new_tokens: int = 512
    micro_batch_size: int | None = None
    group_size: int | None = None
    critic: Literal["head", "model"] = "head"
    reward_model: bool = False
    dtype: Dtype = "bfloat16"
    remat: Remat = "full"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    full_effort: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "batch_size", "prompt_tokens", "new_tokens", "micro_batch_size", "group_size")
        checks.one_of(self, algorithm=PlannedAlgorithm)
        if self.algorithm not in ONLINE and self.reward_model:
            raise InputError(f"reward_model: {self.algorithm} has none; choose ppo, rloo or grpo")
        if self.algorithm != "ppo" and self.critic != "head":
            raise InputError(f"critic={self.critic!r}: {self.algorithm} has no value function; leave it out")
        if self.algorithm not in ("rloo", "grpo") and self.group_size is not None:
            raise InputError(f"group_size={self.group_size}: {self.algorithm} has no groups; leave it out")
        if self.algorithm not in ONLINE and self.micro_batch_size is not None:
            raise InputError(
                f"micro_batch_size={self.micro_batch_size}: {self.algorithm} accumulates whole batches; give one's "
                "rows as batch_size"
            )
        check_micro_batches(self.micro_batch_size, self.batch_size, "completions")
        self.update_settings()

    @property
    def kind(self) -> Any:
        """The settings class of the planned command."""
        return (ONLINE | OFFLINE)[self.algorithm]

    def update_settings(self) -> Any:
        """Settings of the update of PPO, RLOO or GRPO: one epoch, since memory does not depend on their number."""
        if self.algorithm == "ppo":
            return PPOConfig(num_epochs=1, micro_batch_size=self.micro_batch_size)
        return GroupPolicyConfig(micro_batch_size=self.micro_batch_size)


assert set(get_args(PlannedAlgorithm)) == {*ONLINE, *OFFLINE}
