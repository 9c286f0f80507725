"""The command that trains a reward model: `reward-model`."""

from rich.table import Table

from jaxrl_lm import storage
from jaxrl_lm.cli.console import print_text, result_console
from jaxrl_lm.training.reward_model.config import RewardModelRunConfig
from jaxrl_lm.training.reward_model.train import train_reward_model


def run_reward_model(config: RewardModelRunConfig) -> None:
    """Train a reward model, and print its accuracy next to that of a bag of words, and its folder."""
    folder = train_reward_model(config)
    console = result_console()
    comparison = storage.read_sections(folder)[0]
    table = Table(*comparison.heads)
    for row in comparison.rows:
        table.add_row(*row)
    console.print(table)
    print_text(comparison.note, console=console)
    print_text(
        f"report: {folder.report_file}\nmodel:  {folder.model_folder}\n"
        f"use it: jaxrl-lm ppo --reward model:{folder.model_folder} ...",
        console=console,
        soft_wrap=True,
    )
