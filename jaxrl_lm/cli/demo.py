"""`jaxrl-lm demo`: a language model learns by PPO, offline, in a minute or two on any machine."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from jaxrl_lm.algorithms import PPOConfig
from jaxrl_lm.cli.language import print_result
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.byte_model import write_byte_model
from jaxrl_lm.training.language_config import AnswerConfig, KLConfig, LanguagePPOConfig, check_seed
from jaxrl_lm.training.language_ppo import train_language_ppo

_PROMPTS = (
    "The maze was dark, and",
    "Left or right? The agent",
    "A reward is",
    "To find the exit,",
    "Every step costs",
    "The policy chose",
    "After a thousand episodes",
    "Nobody had told the robot",
)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Train a tiny byte-level GPT-2, made on the spot, to write vowels.

    Attributes:
        out: folder of the run; must not exist. Model and prompts lie in a folder beside it, named OUT-inputs.
        num_updates: updates to make.
        seed: of weights, sampling and shuffling.
    """

    out: str = "runs/demo"
    num_updates: int = 60
    seed: int = 0


def run_demo(config: DemoConfig) -> None:
    """Make the model and the prompts, train, and print what came of it."""
    check_seed(config.seed)
    if Path(config.out).exists():
        raise InputError(f"out={config.out!r} exists; choose another folder with --out, or delete it")
    console = Console()
    console.print(
        "A tiny GPT-2 with random weights is written as a Hugging Face folder, loaded back, and learns by PPO to "
        "answer with vowels (built-in reward 'vowels'), at a penalty for leaving where it started."
    )
    inputs = Path(f"{config.out}-inputs")
    model, prompts = inputs / "byte-gpt2", inputs / "prompts.txt"
    write_byte_model(model, seed=config.seed)
    prompts.write_text("\n".join(_PROMPTS) + "\n", encoding="utf-8")
    print_result(train_language_ppo(_training(config, model, prompts)))


def _training(config: DemoConfig, model: Path, prompts: Path) -> LanguagePPOConfig:
    return LanguagePPOConfig(
        model=str(model),
        prompts=str(prompts),
        reward="vowels",
        out=config.out,
        num_updates=config.num_updates,
        seed=config.seed,
        batch_size=64,
        answers=AnswerConfig(max_new_tokens=24),
        kl=KLConfig(coefficient=0.005, target=None),
        ppo=PPOConfig(learning_rate=3e-3, num_minibatches=2),
    )
