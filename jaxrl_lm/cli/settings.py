"""Options of the commands that make no run: evaluate, report, generate and merge."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxrl_lm.errors import InputError
from jaxrl_lm.training.answering import AnsweringConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Play whole episodes with a checkpoint of a run in an environment.

    `eval` is the greedy policy, `eval_sampled` acts as in training (PPO samples, Q-learners explore with their current
    epsilon), `eval_train` is greedy on levels of the training.

    Attributes:
        run: folder of the run.
        env_options: KEY=VALUE each, in place of the run's own, such as generator=wilson.
        episodes: episodes per seed; in generated mazes, the number of held-out levels of each seed.
        seed: random seed of levels and episodes.
        checkpoint: newest, best (the highest `eval/return`, mean over seeds, of a run with --eval-every; after a seed
            has diverged, the highest since then), or a number from the run's folder `checkpoints`: chunks of updates.
    """

    run: str
    env_options: tuple[str, ...] = ()
    episodes: int = 1000
    seed: int = 0
    checkpoint: Literal["newest", "best"] | int = "newest"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw the plots and the report of a run again; the run may still be training, or have been stopped.

    Attributes:
        run: folder of the run.
    """

    run: str


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(AnsweringConfig):
    """Complete prompts with a language model.

    Attributes:
        model: a folder or a Hugging Face hub id.
        prompt: prompts, as text.
        prompts: a file of prompts, in any form that `ppo` reads.
        prompt_column: column of the file that holds the prompt.
        out: write completions as JSON lines to this file, which must not exist, instead of printing them; printed
            ones have their control characters spelled out.
    """

    model: str
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]")] = ()
    prompts: str | None = None
    prompt_column: str = "prompt"
    out: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt and self.prompts is None:
            raise InputError("prompt: none given; give --prompt TEXT or --prompts FILE")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merge an adapter in PEFT's format (LoRA) into its base, and save the whole model in float32.

    Attributes:
        adapter: folder or hub id of the adapter, such as the folder `adapter` of a run.
        out: folder of the merged model; must not exist.
        base: folder or hub id of the base; None for the one that the adapter names.
    """

    adapter: str
    out: str
    base: str | None = None
