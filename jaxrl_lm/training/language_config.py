"""Settings of reinforcement learning on a language model."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxrl_lm import data
from jaxrl_lm.algorithms import PPOConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.rollouts import SamplingConfig


def check_seed(seed: int) -> None:
    """Refuse what is no seed for JAX and numpy alike.

    Raises:
        InputError: the seed is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} must be at least 0 and below 2**32")


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """How answers are drawn and where they end.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: of sampling, and of every log-probability used in learning.
        stop: texts of one token each that end an answer, in addition to the model's own stop tokens, which are those
            of its generation_config.json and the tokenizer's end-of-text token. Nothing else of generation_config.json
            is used: answers are drawn from the whole softmax, as their log-probabilities say.
        ignore_stops_before: stop tokens among the first so many tokens end nothing.
        missing_stop_score: score of an answer that no stop token ended, in place of its reward; Ziegler et al. use
            -1. None leaves the reward.
        score_at: where the score is paid: at the answer's "last_token", or "after_end", one step behind it, as
            Ziegler et al. do.
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    ignore_stops_before: int = 0
    missing_stop_score: float | None = None
    score_at: Literal["last_token", "after_end"] = "last_token"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature} must be above 0: PPO learns from drawn answers")

    def paid_scores(self, scores: np.ndarray, is_stopped: np.ndarray) -> np.ndarray:
        """What training pays for answers with these scores, `[B]`: see `missing_stop_score`."""
        if self.missing_stop_score is None:
            return scores
        return np.where(is_stopped, scores, self.missing_stop_score).astype(np.float32)

    def sampling(self, tokenizer: Any) -> SamplingConfig:
        """How a model with this tokenizer draws its answers.

        Raises:
            InputError: a text of `stop` is not one token.
        """
        data.warn_left_out(data.generation_defaults(tokenizer), is_learning=True)
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            stop_tokens=data.stop_token_ids(tokenizer, self.stop),
            ignore_stops_before=self.ignore_stops_before,
            pad_token=data.padding_token(tokenizer),
        )


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """Penalty for leaving the reference policy, which is the model that training starts from.

    Attributes:
        coefficient: beta, score units a nat; where adaptive, its start.
        target: KL in nats an answer that the adaptive coefficient aims at; None keeps the coefficient.
        horizon: episodes over which the adaptive coefficient moves by its proportional error.
    """

    coefficient: float = 0.15
    target: float | None = 6.0
    horizon: int = 10_000

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise InputError(f"kl.coefficient={self.coefficient} must be 0 or more")
        if self.target is not None and not self.target > 0:
            raise InputError(f"kl.target={self.target} must be above 0 nats, or none for a fixed coefficient")
        if self.horizon < 1:
            raise InputError(f"kl.horizon={self.horizon} must be at least 1 episode")


@dataclass(frozen=True, kw_only=True)
class AnswerTrainingConfig:
    """What all reinforcement learning on a language model has: answer prompts, score the answers, learn.

    Attributes:
        model: policy to start from, and reference: a folder or a Hugging Face hub id.
        prompts: .jsonl, .json, .csv, .tsv, .parquet, plain text (a prompt a line), each also .gz, or
            hub:NAME[[:CONFIG]:SPLIT].
        reward: a built-in's name, model:FOLDER (a reward model), module:function or file.py:function, called as
            f(prompts, completions, **columns) -> list[float].
        judges: further rewards, each as NAME=REWARD; they score the same answers for the curves `judge/NAME`, and
            are never learned from.
        out: folder of the run; must not exist yet, unless resuming.
        prompt_column: column of the prompts file that holds the prompt.
        num_updates: updates to make.
        batch_size: answers an update.
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
    judges: tuple[str, ...] = ()
    prompt_column: str = "prompt"
    num_updates: int = 100
    batch_size: int = 64
    answers: AnswerConfig = field(default_factory=AnswerConfig)
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
        for index, judge in enumerate(self.judges):
            name, _, reward = judge.partition("=")
            if not (name and reward) or name in self.judge_names[:index]:
                raise InputError(f"judges={judge!r} must be NAME=REWARD, each name once, as in gold=good_manners")

    @property
    def judge_names(self) -> list[str]:
        """What stands before the first = of each judge."""
        return [judge.partition("=")[0] for judge in self.judges]

    @property
    def judge_rewards(self) -> list[str]:
        """What stands behind it."""
        return [judge.partition("=")[2] for judge in self.judges]


@dataclass(frozen=True, kw_only=True)
class LanguagePPOConfig(AnswerTrainingConfig):
    """PPO on a language model; one answer a prompt.

    Attributes:
        discount: gamma.
        trace_decay: lambda of GAE.
        kl: penalty for leaving the reference.
        ppo: the update.
        value_model: a folder or hub id to start a separate value network from: a reward model that reads the
            policy's tokens, or any causal language model of its vocabulary. None puts a value head on the policy.
        rescore: compute the answers' log-probabilities and values again before learning, by the very function that
            learns, so that the first ratio is 1 in any dtype. Off, those of decoding are taken: a forward pass
            less, and a first ratio that is 1 up to what decoding rounds: leave it on in bfloat16.
    """

    discount: float = 1.0
    trace_decay: float = 0.95
    kl: KLConfig = field(default_factory=KLConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    value_model: str | None = None
    rescore: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "trace_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if self.ppo.minibatch_unit != "sequences":
            raise InputError(
                f"ppo.minibatch_unit={self.ppo.minibatch_unit!r}: the tokens of an answer are scored together; "
                "use 'sequences'"
            )
        if not self.rescore and (self.value_model or self.answers.score_at == "after_end"):
            raise InputError(
                "rescore=False: decoding gives no values of a value_model, and none behind the last token "
                "(answers.score_at='after_end'); leave rescore on"
            )
        if self.batch_size % self.ppo.num_minibatches:
            raise InputError(
                f"ppo.num_minibatches={self.ppo.num_minibatches} does not divide batch_size={self.batch_size}; "
                "choose a divisor, or another batch size"
            )

    @property
    def is_extensible(self) -> bool:
        """Whether a finished run may be made longer: the learning rate must not follow the run's length."""
        return self.ppo.anneal_updates is not None
