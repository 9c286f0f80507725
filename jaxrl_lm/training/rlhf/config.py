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
    """Who says which answer is better, and of how many pairs.

    Attributes:
        annotator: "simulated" judges by `gold`; "file" reads `file`; "page" asks people on a web page.
        num_pairs: pairs of answers that the current policy is asked for in each round; those of equal or empty
            answers are not judged.
        gold: a reward function's name, as `ppo --reward` takes it; what the simulated annotator judges by. Where it is
            given, all policies are judged by it in the end.
        noise: of the simulated annotator, in units of the gold reward: P(better) = sigmoid(difference / noise).
        file: preferences; with several rounds {round} stands in its name, for each has labels of its own.
        port: of the page.
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
        seed: of the stage; None takes the chain's.
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
    """A reward model in every round.

    Attributes:
        model: what it starts from; None for the model that PPO starts from.
    """

    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class PPOStage(_OwnSeed, PPOStageConfig):
    """PPO in every round."""


@dataclass(frozen=True, kw_only=True)
class RLHFConfig:
    """Reinforcement learning from human feedback: fine-tune, then rounds of labels, reward model and PPO.

    Every round judges answers of the newest policy, trains a reward model on all labels so far, and PPO anew from the
    fine-tuned model, which is the reference of every round. A stage that has ended is not run again; one that was
    interrupted goes on; settings of stages that have not begun may still be changed. Stages are left out by what is
    given instead: no `sft_data`, labels in a file, a ready `reward`; `stop_after` leaves out what follows.

    Attributes:
        model: the base model: a folder or a Hugging Face hub id.
        prompts: as `ppo` reads them.
        out: folder of the chain, with a run folder for each stage; the same command again goes on.
        prompt_column: column of the prompts file that holds the prompt.
        chat: wrap each prompt that is plain text as a user's message in the tokenizer's chat template.
        sft_data: examples to fine-tune the base model on first; None starts from the base model.
        rounds: of labels, reward model and PPO; the same command with more of them goes on.
        stop_after: the stage that ends the last round; the same command with a later one goes on.
        reward: a ready reward in the place of labels and reward model, as `ppo --reward` takes it (model:FOLDER, say).
        labels: who judges.
        num_judged: prompts on which all policies are compared in the end.
        sft: fine-tuning.
        reward_model: the reward model.
        ppo: the policy's training.
        seed: of everything drawn, in the stages as well unless they have a seed of their own.
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
    num_judged: int = 64
    sft: FineTuningStage = field(default_factory=FineTuningStage)
    reward_model: RewardModelStage = field(default_factory=RewardModelStage)
    ppo: PPOStage = field(default_factory=PPOStage)
    seed: int = 0

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "rounds", "num_judged")
        checks.seed(self.seed)
        checks.one_of(self, stop_after=Stage)
        self._check_labels()
        self._check_skipped()

    def _check_labels(self) -> None:
        labels = self.labels
        if labels.annotator == "simulated" and labels.gold is None and self.reward is None:
            raise InputError(
                "labels.gold: the simulated annotator needs a reward to judge by, such as good_manners; or ask people "
                "by --labels.annotator page"
            )
        if labels.gold is not None and "gold" in self.ppo.watched_rewards():
            raise InputError("ppo.judges: the name gold is taken by labels.gold; name the judge otherwise")
        if labels.file is not None and self.rounds > 1 and "{round}" not in labels.file:
            raise InputError(
                f"labels.file={labels.file!r} would count {self.rounds} times: write {{round}} where the names of the "
                "rounds' files differ, or ask for one of the rounds"
            )

    def _check_skipped(self) -> None:
        if self.stop_after == "sft" and self.sft_data is None:
            raise InputError(
                "stop_after=sft: without sft_data there is no fine-tuning; give examples, or a later stage"
            )
        if self.reward is None:
            return
        if self.stop_after in ("labels", "reward_model"):
            raise InputError(
                f"stop_after={self.stop_after}: reward={self.reward!r} takes that stage's place; leave one out"
            )
        if self.labels.annotator != "simulated":
            raise InputError(
                f"labels.annotator={self.labels.annotator}: reward={self.reward!r} takes the labels' place; leave "
                "one out"
            )
        if self.rounds > 1:
            raise InputError(f"rounds={self.rounds}: reward={self.reward!r} is the same in all of them; leave one out")
