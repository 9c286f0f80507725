"""Commands on language models: those that train one, and `generate`."""

import json
import sys
from pathlib import Path

from rich.table import Table

from jaxrl_lm import data, storage
from jaxrl_lm.cli.console import print_text, result_console
from jaxrl_lm.cli.settings import GenerateConfig
from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.answering import answer_prompts
from jaxrl_lm.training.offline.task import OfflineRunConfig
from jaxrl_lm.training.offline.train import train_offline
from jaxrl_lm.training.online.config import OnlineRunConfig
from jaxrl_lm.training.online.train import train_online


def run_offline(config: OfflineRunConfig) -> None:
    """Train a language model on examples and say where everything is."""
    print_result(train_offline(config), config.SHOWN)


def run_online(config: OnlineRunConfig) -> None:
    """Train a language model on its own completions and say where everything is."""
    print_result(train_online(config), config.SHOWN)


def print_result(folder: storage.RunFolder, shown: tuple[str, ...]) -> None:
    """First and last of the named metrics of a run, and its files."""
    curves = storage.read_metrics(folder)
    table = Table("", "first", "last")
    for name in shown:
        if name in curves:
            values = curves[name].values
            table.add_row(name, f"{values[0]:.4g}", f"{values[-1]:.4g}")
    console = result_console()
    console.print(table)
    samples = storage.read_jsonl(folder.samples_file)
    for phase in ("before", "after"):
        rewards = [sample["reward"] for sample in samples if sample["phase"] == phase and "reward" in sample]
        if rewards:
            console.print(f"samples {phase}: mean reward {sum(rewards) / len(rewards):.4g} over {len(rewards)}")
    print_text(f"report: {folder.report_file}\nmodel:  {folder.model_folder}", console=console, soft_wrap=True)


def run_generate(config: GenerateConfig) -> None:
    """Complete prompts and print them, or write them to a file."""
    if config.out is not None:
        _check_out_file(Path(config.out))
    prompts = [Prompt(prompt=text, columns={}) for text in config.prompt]
    if config.prompts is not None:
        prompts += data.read_prompts(config.prompts, column=config.prompt_column)
    completions = answer_prompts(config.model, prompts, config)
    pairs = list(zip(prompts, completions, strict=True))
    if config.out is None:
        for prompt, completion in pairs:
            sys.stdout.write(storage.visible_text(f"> {prompt.text()}\n{completion}\n\n"))
        return
    lines = [
        json.dumps(
            {"prompt": prompt.prompt, "completion": completion, **data.template_columns(prompt.prompt)},
            ensure_ascii=False,
        )
        for prompt, completion in pairs
    ]
    storage.write_atomically(Path(config.out), "\n".join(lines) + "\n")


def _check_out_file(out: Path) -> None:
    if out.exists():
        raise InputError(f"out={str(out)!r} exists; choose another file")
    if not out.parent.is_dir():
        raise InputError(f"out={str(out)!r}: there is no folder {str(out.parent)!r}; make it first")
