"""Commands on language models: `ppo`, `rloo`, `grpo` and `generate`."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_lm import data, storage
from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.answering import answer_prompts
from jaxrl_lm.training.group_config import GroupConfig
from jaxrl_lm.training.language_config import LanguagePPOConfig, check_seed
from jaxrl_lm.training.language_groups import train_language_groups
from jaxrl_lm.training.language_ppo import train_language_ppo

_SHOWN = (
    "reward/mean",
    "kl/answer",
    "answer/length",
    "ratio/first_max_error",
    "ratio/rollout_max_error",
    "time/update",
)


def run_ppo(config: LanguagePPOConfig) -> None:
    """Train a language model by PPO and say where everything lies."""
    print_result(train_language_ppo(config))


def run_groups(config: GroupConfig) -> None:
    """Train a language model by RLOO or GRPO and say where everything lies."""
    print_result(train_language_groups(config))


def print_result(folder: storage.RunFolder, shown: tuple[str, ...] = _SHOWN) -> None:
    """First and last of the named metrics of a run, and its files."""
    curves = storage.read_metrics(folder)
    table = Table("", "first", "last")
    for name in shown:
        if name in curves:
            values = curves[name].values
            table.add_row(name, f"{values[0]:.4g}", f"{values[-1]:.4g}")
    console = Console()
    console.print(table)
    samples = storage.read_jsonl(folder.samples_file)
    for phase in ("before", "after"):
        rewards = [sample["reward"] for sample in samples if sample["phase"] == phase and "reward" in sample]
        if rewards:
            console.print(f"samples {phase}: mean reward {sum(rewards) / len(rewards):.4g} over {len(rewards)}")
    console.print(f"report: {folder.report_file}\nmodel:  {folder.model_folder}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Answer prompts with a language model.

    Attributes:
        model: a folder or a Hugging Face hub id.
        prompt: prompts, as text.
        prompts: a file of prompts, in any form that `ppo` reads.
        prompt_column: column of the file that holds the prompt.
        chat: wrap each prompt that is plain text as a user's message in the tokenizer's chat template.
        out: write answers as JSON lines to this file, which must not exist, instead of printing them.
        max_new_tokens: length of the longest answer, in tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only; 0 for all.
        top_p: draw from the smallest set of likeliest tokens whose probability reaches p; 1 for all.
        min_new_tokens: no answer ends before so many tokens.
        stop: texts of one token each that end an answer, beside the model's end-of-text token.
        batch_size: prompts answered at a time.
        seed: of sampling.
        dtype: of activations.
    """

    model: str
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]")] = ()
    prompts: str | None = None
    prompt_column: str = "prompt"
    chat: bool = False
    out: str | None = None
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    batch_size: int = 16
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.prompt and self.prompts is None:
            raise InputError("prompt: none given; give --prompt TEXT or --prompts FILE")
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} must be at least 1")
        check_seed(self.seed)


def run_generate(config: GenerateConfig) -> None:
    """Answer prompts and print them, or write them to a file."""
    if config.out is not None:
        _check_out_file(Path(config.out))
    prompts = [Prompt(prompt=text, columns={}) for text in config.prompt]
    if config.prompts is not None:
        prompts += data.read_prompts(config.prompts, column=config.prompt_column)
    answers = answer_prompts(
        config.model,
        [as_chat(prompt) for prompt in prompts] if config.chat else prompts,
        stop=config.stop,
        batch_size=config.batch_size,
        seed=config.seed,
        dtype=jnp.dtype(config.dtype),
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_new_tokens=config.min_new_tokens,
    )
    pairs = list(zip(prompts, answers, strict=True))
    if config.out is None:
        for prompt, answer in pairs:
            sys.stdout.write(f"> {prompt.text()}\n{answer}\n\n")
        return
    lines = [
        json.dumps({"prompt": prompt.prompt, "completion": answer}, ensure_ascii=False) for prompt, answer in pairs
    ]
    storage.write_atomically(Path(config.out), "\n".join(lines) + "\n")


def _check_out_file(out: Path) -> None:
    if out.exists():
        raise InputError(f"out={str(out)!r} exists; choose another file")
    if not out.parent.is_dir():
        raise InputError(f"out={str(out)!r}: there is no folder {str(out.parent)!r}; make it first")


def as_chat(prompt: Prompt) -> Prompt:
    """The prompt as a user's message, if it is plain text."""
    if not isinstance(prompt.prompt, str):
        return prompt
    return replace(prompt, prompt=[{"role": "user", "content": prompt.prompt}])
