"""Commands on language models: `ppo` and `generate`."""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_lm import data, models, rollouts, storage
from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.rollouts import SamplingConfig
from jaxrl_lm.training.language_config import LanguagePPOConfig
from jaxrl_lm.training.language_ppo import train_language_ppo


def run_ppo(config: LanguagePPOConfig) -> None:
    """Train a language model by PPO and say where everything lies."""
    print_result(train_language_ppo(config))


def print_result(folder: storage.RunFolder) -> None:
    """First and last metrics of a run, and its files."""
    curves = storage.read_metrics(folder)
    table = Table("", "first update", "last update")
    for name in ("reward/mean", "kl/answer", "answer/length", "ratio/first_max_error", "time/update"):
        if name in curves:
            values = curves[name].values
            table.add_row(name, f"{values[0]:.4g}", f"{values[-1]:.4g}")
    console = Console()
    console.print(table)
    samples = storage.read_jsonl(folder.samples_file)
    for phase in ("before", "after"):
        rewards = [sample["reward"] for sample in samples if sample["phase"] == phase]
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
        chat: wrap each --prompt as a user's message in the tokenizer's chat template.
        out: write answers as JSON lines to this file, which must not exist, instead of printing them.
        batch_size: prompts answered at a time.
        seed: of sampling.
        dtype: of activations.
        sampling: how answers are drawn.
    """

    model: str
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]")] = ()
    prompts: str | None = None
    prompt_column: str = "prompt"
    chat: bool = False
    out: str | None = None
    batch_size: int = 16
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if not self.prompt and self.prompts is None:
            raise InputError("prompt: none given; give --prompt TEXT or --prompts FILE")
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} must be at least 1")


def run_generate(config: GenerateConfig) -> None:
    """Answer prompts and print them, or write them to a file."""
    if config.out is not None and Path(config.out).exists():
        raise InputError(f"out={config.out!r} exists; choose another file")
    prompts = _given_prompts(config)
    if config.prompts is not None:
        prompts += data.read_prompts(config.prompts, column=config.prompt_column)
    answers = _answer(config, prompts)
    records = [{"prompt": prompt.prompt, "completion": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    if config.out is not None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        storage.write_atomically(Path(config.out), lines)
        return
    for record in records:
        sys.stdout.write(f"> {record['prompt']}\n{record['completion']}\n\n")


def _given_prompts(config: GenerateConfig) -> list[Prompt]:
    def wrap(text: str) -> Prompt:
        return Prompt(prompt=[{"role": "user", "content": text}] if config.chat else text, columns={})

    return [wrap(text) for text in config.prompt]


def _answer(config: GenerateConfig, prompts: list[Prompt]) -> list[str]:
    folder = resolve_folder(config.model)
    model, params = models.from_pretrained(folder, dtype=jnp.dtype(config.dtype))
    tokenizer = data.load_tokenizer(folder, vocab_size=model.config.vocab_size)
    longest = model.config.max_positions - config.sampling.max_new_tokens
    ids = data.encode_prompts(prompts, tokenizer, max_tokens=longest)
    width = max(map(len, ids))
    stops = data.stop_token_ids(tokenizer, ()) + config.sampling.stop_tokens
    pad_id = data.padding_token(tokenizer)
    sampling = replace(config.sampling, stop_tokens=stops, pad_token=pad_id)
    key, answers = jax.random.key(config.seed), []
    for start in range(0, len(ids), config.batch_size):
        rows = ids[start : start + config.batch_size]
        input_ids, mask = data.left_pad(rows, pad_id=pad_id, width=width)
        # A row's key comes from its index in the file, so that answers do not depend on the batch size.
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(start + jnp.arange(len(rows)))
        generation = rollouts.generate(model, params, input_ids, mask, keys, sampling)
        answers += rollouts.decode(tokenizer, generation)
    return answers
