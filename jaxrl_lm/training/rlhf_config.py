"""Settings of the whole chain: fine-tuning, labels, reward model, PPO, in rounds."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jaxrl_lm.errors import InputError
from jaxrl_lm.training.language_config import LanguagePPOConfig, check_seed
from jaxrl_lm.training.reward_config import RewardTrainingConfig
from jaxrl_lm.training.supervised_config import SFTConfig

Annotator = Literal["simulated", "file", "page"]
Stage = Literal["sft", "labels", "reward_model", "ppo"]

# What the chain itself puts into a stage's settings, and `model` of the reward model if none is given.
_FILLED_IN = {
    "sft": ("model", "data", "out"),
    "reward_model": ("preferences", "out"),
    "ppo": ("model", "prompts", "reward", "out"),
}


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
        if self.annotator not in get_args(Annotator):
            raise InputError(f"labels.annotator={self.annotator!r} must be one of {', '.join(get_args(Annotator))}")
        if self.num_pairs < 1:
            raise InputError(f"labels.num_pairs={self.num_pairs} must be at least 1")
        if (self.annotator == "file") != (self.file is not None):
            remedy = "name the file" if self.file is None else "add --labels.annotator file, or leave the file out"
            raise InputError(f"labels.file={self.file!r} with labels.annotator={self.annotator}: {remedy}")
        if not self.noise >= 0:
            raise InputError(f"labels.noise={self.noise} must be 0 or more")


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
        sft_data: examples to fine-tune the base model on first; None starts from the base model.
        rounds: of labels, reward model and PPO; the same command with more of them goes on.
        stop_after: the stage that ends the last round; the same command with a later one goes on.
        reward: a ready reward in the place of labels and reward model, as `ppo --reward` takes it (model:FOLDER, say).
        labels: who judges.
        num_judged: prompts on which all policies are compared in the end.
        sft: fine-tuning; the chain fills in model, data and out.
        reward_model: the reward model; the chain fills in preferences and out, and starts from the fine-tuned model
            unless `reward_model.model` names another.
        ppo: the policy's training; the chain fills in model, prompts, reward and out.
        seed: of the pairs, the simulated annotator and the comparison.
    """

    model: str
    prompts: str
    out: str
    prompt_column: str = "prompt"
    sft_data: str | None = None
    rounds: int = 1
    stop_after: Stage = "ppo"
    reward: str | None = None
    labels: LabelingConfig = field(default_factory=LabelingConfig)
    num_judged: int = 64
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(model="", data="", out=""))
    reward_model: RewardTrainingConfig = field(
        default_factory=lambda: RewardTrainingConfig(model="", preferences="", out="")
    )
    ppo: LanguagePPOConfig = field(default_factory=lambda: LanguagePPOConfig(model="", prompts="", reward="", out=""))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "num_judged"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        check_seed(self.seed)
        self._check_labels()
        self._check_skipped()
        for stage, names in _FILLED_IN.items():
            given: Any = getattr(self, stage)
            for name in names:
                if getattr(given, name):
                    raise InputError(f"{stage}.{name}={getattr(given, name)!r} is filled in by the chain; leave it out")
            if given.resume:
                raise InputError(f"{stage}.resume: the chain resumes by itself; leave it out")

    def _check_labels(self) -> None:
        labels = self.labels
        if labels.annotator == "simulated" and labels.gold is None and self.reward is None:
            raise InputError(
                "labels.gold: the simulated annotator needs a reward to judge by, such as good_manners; or ask people "
                "by --labels.annotator page"
            )
        if self.reward_model.objective != "pairwise":
            raise InputError(
                f"reward_model.objective={self.reward_model.objective!r}: the labels of a chain are pairs; leave it at "
                "pairwise, or train the reward model by jaxrl-lm reward-model and give it as reward"
            )
        if labels.gold is not None and "gold" in self.ppo.judge_names:
            raise InputError("ppo.judges: the name gold is taken by labels.gold; name the judge otherwise")
        if labels.file is not None and self.rounds > 1 and "{round}" not in labels.file:
            raise InputError(
                f"labels.file={labels.file!r} would count {self.rounds} times: write {{round}} where the names of the "
                "rounds' files differ, or ask for one of the rounds"
            )

    def _check_skipped(self) -> None:
        if self.stop_after not in get_args(Stage):
            raise InputError(f"stop_after={self.stop_after!r} must be one of {', '.join(get_args(Stage))}")
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
