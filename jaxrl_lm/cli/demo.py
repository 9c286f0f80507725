"""`jaxrl-lm demo`: the complete RLHF pipeline on a small dialogue model, offline, in two minutes on two cores."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from jaxrl_lm.algorithms import AdamWConfig, KLConfig, PPOConfig
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.training.reward_model.config import NormalisationConfig
from jaxrl_lm.training.rlhf.config import FineTuningStage, LabelingConfig, PPOStage, RewardModelStage, RLHFConfig

# A GPT-2 with 0.9 M parameters, its prompts and examples of better replies, from experiments/005_dialogue_model.
DIALOGUE = Path(__file__).resolve().parents[1] / "assets" / "dialogue"

_MAX_NEW_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run RLHF on a small dialogue model: SFT, preferences of a simulated annotator, reward model, PPO.

    Attributes:
        out: output folder; run the same command again to continue a stopped run.
        num_updates: PPO updates.
        seed: random seed of all stages.
    """

    out: str = "runs/demo"
    num_updates: int = 60
    seed: int = 0


def run_demo(config: DemoConfig) -> None:
    """Run the pipeline and print its results."""
    Console().print(
        "A small GPT-2 with mixed manners is fine-tuned on good replies (SFT). A simulated annotator, who prefers good "
        "manners and sometimes errs, compares its replies. A reward model (the proxy) is trained on these preferences, "
        "and PPO maximises the proxy. Finally every model is scored by the annotator's true preference (gold)."
    )
    from jaxrl_lm.cli.rlhf import run_chain  # here, so that --help loads no models

    run_chain(demo_chain(config))


def demo_chain(config: DemoConfig) -> RLHFConfig:
    """The settings of every stage."""
    return RLHFConfig(
        model=str(DIALOGUE / "model"),
        prompts=str(DIALOGUE / "prompts.jsonl"),
        sft_data=str(DIALOGUE / "examples.jsonl"),
        out=config.out,
        num_compared=100,
        labels=LabelingConfig(gold="good_manners", num_pairs=1536, noise=0.3),
        sft=FineTuningStage(
            num_epochs=2.0,
            row_length=128,
            max_new_tokens=_MAX_NEW_TOKENS,
            optimizer=AdamWConfig(learning_rate=1e-3, schedule="cosine", warmup_fraction=0.1),
        ),
        reward_model=RewardModelStage(
            num_epochs=2.0,
            batch_size=16,
            optimizer=AdamWConfig(learning_rate=5e-4, schedule="linear", warmup_fraction=0.1, weight_decay=0.0),
            normalisation=NormalisationConfig(num_samples=256),
        ),
        ppo=PPOStage(
            num_updates=config.num_updates,
            batch_size=64,
            answers=AnswerConfig(max_new_tokens=_MAX_NEW_TOKENS),
            kl=KLConfig(coefficient=0.1, target=None),
            ppo=PPOConfig(learning_rate=1e-4, num_epochs=2, num_minibatches=2),
        ),
        seed=config.seed,
    )
