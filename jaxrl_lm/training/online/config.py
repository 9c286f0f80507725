"""Settings of PPO, RLOO and GRPO on a language model."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from jaxrl_lm import checks
from jaxrl_lm.algorithms.group_policy import GroupConfig, GRPOConfig, RLOOConfig, make_grpo, make_rloo
from jaxrl_lm.algorithms.language_ppo import LanguagePPOConfig, make_language_ppo
from jaxrl_lm.algorithms.minibatches import check_micro_batches
from jaxrl_lm.algorithms.schedules import follows_length
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.rollouts.answers import AnswerConfig
from jaxrl_lm.training.settings import ModelRunConfig, ModelStageConfig
from jaxrl_lm.types import AnswerLearner


@dataclass(frozen=True, kw_only=True)
class OnlineStageConfig(ModelStageConfig):
    """Settings of online reinforcement learning: sample completions, score them, learn.

    Attributes:
        watch: watched rewards as NAME=REWARD; they score the same completions for the curves `watched/NAME` and the
            samples, but are not learned from.
        num_updates: number of updates.
        batch_size: completions per update.
        answers: sampling of completions.
        num_samples: prompts completed before and after training, for the report.
    """

    UPDATE: ClassVar[str] = ""  # the field with the settings of the update

    watch: tuple[str, ...] = ()
    num_updates: int = 100
    batch_size: int = 64
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    num_samples: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 1, "num_updates", "batch_size", "num_samples")
        update = getattr(self, self.UPDATE)
        minibatches = update.num_minibatches
        if self.batch_size % minibatches:
            raise InputError(
                f"{self.UPDATE}.num_minibatches={minibatches} does not divide batch_size={self.batch_size}; "
                "choose a divisor, or another batch size"
            )
        rows = self.batch_size // minibatches
        check_micro_batches(update.micro_batch_size, rows, "completions", prefix=f"{self.UPDATE}.")
        if self.answers.weights != "same" and self.lora.quantize != "none":
            raise InputError(
                f"answers.weights={self.answers.weights!r}: the weights are quantised already, by "
                f"lora.quantize={self.lora.quantize!r}; leave it out"
            )
        self.watched_rewards()

    def watched_rewards(self) -> dict[str, str]:
        """The rewards that are watched, by name.

        Raises:
            InputError: one is not NAME=REWARD, or a name is given twice or has a slash.
        """
        found: dict[str, str] = {}
        for each in self.watch:
            name, _, reward = each.partition("=")
            if not (name and reward) or name in found or "/" in name:
                raise InputError(
                    f"watch={each!r} must be NAME=REWARD, as in gold=good_manners, with each name once and without /"
                )
            found[name] = reward
        return found

    def split_batches(self) -> dict[str, int]:
        """Numbers of completions that are split over devices, by option."""
        update = getattr(self, self.UPDATE)
        sizes = {"batch_size": self.batch_size}
        if update.num_minibatches > 1:
            sizes[f"batch_size / {self.UPDATE}.num_minibatches"] = self.batch_size // update.num_minibatches
        if update.micro_batch_size is not None:
            sizes[f"{self.UPDATE}.micro_batch_size"] = update.micro_batch_size
        return sizes

    def length_setting(self) -> str | None:
        return None if follows_length(getattr(self, self.UPDATE)) else "num_updates"

    def with_schedule(self) -> Any:
        """The same, with the learning rate falling over the run where the settings leave that open."""
        update = getattr(self, self.UPDATE)
        if update.anneal_updates is not None:
            return self
        return replace(self, **{self.UPDATE: replace(update, anneal_updates=self.num_updates)})


@dataclass(frozen=True, kw_only=True)
class OnlineRunConfig(OnlineStageConfig, ModelRunConfig):
    """Settings of a run of online reinforcement learning.

    Attributes:
        model: initial policy and reference: a folder or a Hugging Face hub id.
        prompts: .jsonl, .json, .csv, .tsv, .parquet, plain text (one prompt per line), each also .gz, or
            hub:NAME[[:CONFIG]:SPLIT].
        reward: one or more of: a built-in's name (words, brevity, distinct_words, lowercase, vowels, good_manners),
            model:FOLDER (a reward model), module:function or file.py:function. A function is called as in TRL:
            f(prompts, completions, **columns) -> list of numbers or None; for conversational prompts, each completion
            is a list of messages, [{"role": "assistant", "content": ...}].
        reward_weights: weights of several rewards in their sum, 1 each by default; the mean of each is logged as
            reward/NAME.
        prompt_column: column of the prompts file with the prompt.
        chat: wrap each plain-text prompt as a user message in the tokenizer's chat template.
    """

    SHOWN: ClassVar[tuple[str, ...]] = (
        "reward/mean",
        "kl/answer",
        "answer/length",
        "ratio/first_max_error",
        "ratio/rollout_max_error",
        "time/update",
    )
    """Metrics that are printed: the first two on the progress line, all in the table at the end of the run."""

    TITLE: ClassVar[str] = ""  # of the algorithm, in reports

    prompts: str
    reward: str | tuple[str, ...]
    reward_weights: tuple[float, ...] = ()
    prompt_column: str = "prompt"
    chat: bool = False

    @property
    def policy_head(self) -> Literal["value"] | None:
        """The head that the policy has in addition to the language model."""
        return None

    @property
    def value_model_name(self) -> str | None:
        """Folder or hub id of a value network of its own."""
        return None

    def make_learner(self, model: CausalLM, value_model: CausalLM | None = None) -> AnswerLearner:
        """The learner of these settings.

        Args:
            model: the policy.
            value_model: what `value_model_name` names, or None.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PPOStageConfig(OnlineStageConfig, LanguagePPOConfig):
    """Settings of PPO on a language model.

    Attributes:
        value_model: folder or hub id of a separate value network: a reward model with the policy's tokenizer, or any
            causal language model with its vocabulary. None adds a value head to the policy.
    """

    UPDATE: ClassVar[str] = "ppo"

    value_model: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        LanguagePPOConfig.__post_init__(self)
        if self.value_model and not self.rescore:
            raise InputError("rescore=False: decoding does not compute the values of a value_model; leave rescore on")


@dataclass(frozen=True, kw_only=True)
class PPORunConfig(PPOStageConfig, OnlineRunConfig):
    """PPO on a language model; one completion per prompt."""

    TITLE: ClassVar[str] = "PPO"

    @property
    def policy_head(self) -> Literal["value"] | None:
        return None if self.value_model else "value"

    @property
    def value_model_name(self) -> str | None:
        return self.value_model

    def make_learner(self, model: CausalLM, value_model: CausalLM | None = None) -> AnswerLearner:
        return make_language_ppo(self.with_schedule(), model, value_model=value_model)


@dataclass(frozen=True, kw_only=True)
class _GroupRunConfig(OnlineRunConfig, GroupConfig):
    UPDATE: ClassVar[str] = "policy"

    def __post_init__(self) -> None:
        super().__post_init__()
        GroupConfig.__post_init__(self)
        if self.batch_size % self.group_size:
            raise InputError(
                f"group_size={self.group_size} does not divide batch_size={self.batch_size}; choose a divisor"
            )


@dataclass(frozen=True, kw_only=True)
class RLOORunConfig(RLOOConfig, _GroupRunConfig):
    """RLOO on a language model: REINFORCE with the mean reward of the prompt's other completions as baseline."""

    TITLE: ClassVar[str] = "RLOO"

    def make_learner(self, model: CausalLM, value_model: CausalLM | None = None) -> AnswerLearner:
        return make_rloo(self.with_schedule(), model)


@dataclass(frozen=True, kw_only=True)
class GRPORunConfig(GRPOConfig, _GroupRunConfig):
    """GRPO on a language model: rewards are standardised within the completions of a prompt."""

    TITLE: ClassVar[str] = "GRPO"

    def make_learner(self, model: CausalLM, value_model: CausalLM | None = None) -> AnswerLearner:
        return make_grpo(self.with_schedule(), model)
