"""Settings of the whole chain: fine-tuning, labels, reward model, PPO, in rounds."""

from dataclasses import dataclass, field
from typing import Literal

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.offline.sft import SFTStageConfig
from jaxrl_lm.training.online.config import PPOStageConfig
from jaxrl_lm.training.reward_model.config import RewardModelStageConfig

Annotator = Literal["simulated", "file", "page"]
Stage = Literal["sft", "labels", "reward_model", "ppo"]


@dataclass(frozen=True, kw_only=True)
class LabelingConfig:
    """Source of the preference labels.

    Attributes:
        annotator: "simulated" uses the `gold` reward; "file" reads `file`; "page" asks people on a web page.
        num_pairs: pairs of completions that the current policy samples in each round; pairs of equal or empty
            completions are not labelled.
        gold: reward function of the simulated annotator, as for `ppo --reward`. If given, all policies are also
            evaluated with it at the end.
        noise: noise of the simulated annotator, in units of the gold reward: P(better) = sigmoid(difference / noise).
        file: preferences; with several rounds, its name contains {round}, since each round has its own labels.
        port: port of the web page.
    """

    annotator: Annotator = "simulated"
    num_pairs: int = 256
    gold: str | None = None
    noise: float = 0.5
    file: str | None = None
    port: int = 8642

    def __post_init__(self) -> None:
        checks.one_of(self, prefix="labels.", annotator=Annotator)
        checks.at_least(self, 1, "num_pairs", prefix="labels.")
        checks.at_least(self, 0, "noise", prefix="labels.")
        if (self.annotator == "file") != (self.file is not None):
            remedy = "name the file" if self.file is None else "add --labels.annotator file, or leave the file out"
            raise InputError(f"labels.file={self.file!r} with labels.annotator={self.annotator}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class _OwnSeed:
    """A stage's seed.

    Attributes:
        seed: random seed of the stage; None uses the chain's.
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]
        if self.seed is not None:
            checks.seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class FineTuningStage(_OwnSeed, SFTStageConfig):
    """Fine-tuning of the base model."""


@dataclass(frozen=True, kw_only=True)
class RewardModelStage(_OwnSeed, RewardModelStageConfig):
    """Training of the reward model in each round.

    Attributes:
        model: initial model; None for the model that PPO starts from.
    """

    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class PPOStage(_OwnSeed, PPOStageConfig):
    """PPO in every round."""


@dataclass(frozen=True, kw_only=True)
class RLHFConfig:
    """Reinforcement learning from human feedback: fine-tune, then rounds of labels, reward model and PPO.

    Each round labels completions of the newest policy, trains a reward model on all labels so far, and runs PPO from
    the fine-tuned model, which is the reference in every round. Finished stages are not run again, an interrupted stage
    is resumed, and settings of stages that have not started can still change. To skip stages, give no `sft_data`,
    labels in a file, or a ready `reward`; `stop_after` skips the later stages.

    Attributes:
        model: base model: a folder or a Hugging Face hub id.
        prompts: prompts, as for `ppo`.
        out: folder of the chain, with a run folder for each stage; run the same command again to resume.
        prompt_column: column of the prompts file with the prompt.
        chat: wrap each plain-text prompt as a user message in the tokenizer's chat template.
        sft_data: examples to fine-tune the base model on first; None starts from the base model.
        rounds: rounds of labels, reward model and PPO; run the same command with more to continue.
        stop_after: last stage of the last round; run the same command with a later one to continue.
        reward: ready reward instead of labels and reward model, as for `ppo --reward` (such as model:FOLDER).
        labels: source of the labels.
        num_compared: number of prompts on which all policies are compared at the end.
        sft: fine-tuning.
        reward_model: reward model.
        ppo: PPO.
        seed: random seed, also of the stages unless they have their own.
    """

    model: str
    prompts: str
    out: str
    prompt_column: str = "prompt"
    chat: bool = False
    sft_data: str | None = None
    rounds: int = 1
    stop_after: Stage = "ppo"
    reward: str | None = None
    labels: LabelingConfig = field(default_factory=LabelingConfig)
    num_compared: int = 64
    sft: FineTuningStage = field(default_factory=FineTuningStage)
    reward_model: RewardModelStage = field(default_factory=RewardModelStage)
    ppo: PPOStage = field(default_factory=PPOStage)
    seed: int = 0

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "rounds", "num_compared")
        checks.seed(self.seed)
        checks.one_of(self, stop_after=Stage)
        self._check_labels()
        self._check_skipped()

    def _check_labels(self) -> None:
        labels = self.labels
        if labels.annotator == "simulated" and labels.gold is None and self.reward is None:
            raise InputError(
                "labels.gold: the simulated annotator needs a reward, such as good_manners; or ask people "
                "with --labels.annotator page"
            )
        if labels.gold is not None and "gold" in self.ppo.watched_rewards():
            raise InputError("ppo.watch: the name gold is taken by labels.gold; choose another name")
        if labels.file is not None and self.rounds > 1 and "{round}" not in labels.file:
            raise InputError(
                f"labels.file={labels.file!r} would be used {self.rounds} times: write {{round}} where the names of "
                "the rounds' files differ, or set rounds=1"
            )

    def _check_skipped(self) -> None:
        if self.stop_after == "sft" and self.sft_data is None:
            raise InputError(
                "stop_after=sft: without sft_data there is no fine-tuning; give sft_data, or a later stage"
            )
        if self.reward is None:
            return
        if self.stop_after in ("labels", "reward_model"):
            raise InputError(f"stop_after={self.stop_after}: reward={self.reward!r} replaces that stage; leave one out")
        if self.labels.annotator != "simulated":
            raise InputError(
                f"labels.annotator={self.labels.annotator}: reward={self.reward!r} replaces the labels; leave one out"
            )
        if self.rounds > 1:
            raise InputError(f"rounds={self.rounds}: reward={self.reward!r} is the same in all rounds; leave one out")
