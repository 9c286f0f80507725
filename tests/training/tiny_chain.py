"""Settings of a chain with a byte model and a few updates a stage."""

from pathlib import Path

from jaxrl_lm import data
from jaxrl_lm.algorithms import AdamWConfig, PPOConfig
from jaxrl_lm.data import PromptCompletion
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.training.reward_model.config import NormalisationConfig
from jaxrl_lm.training.rlhf.config import FineTuningStage, LabelingConfig, PPOStage, RewardModelStage, RLHFConfig
from tests.byte_model import write_byte_model


def tiny_chain(folder: Path) -> RLHFConfig:
    """Two rounds; writes the model, prompts and examples into the folder."""
    write_byte_model(folder / "model", num_layers=1, model_size=16, num_heads=2, context=48)
    (folder / "prompts.txt").write_text("ab\ncd\nef\ngh\n")
    pairs = [PromptCompletion(prompt=f"p{number}", completion=" aeiou") for number in range(12)]
    data.write_jsonl(folder / "examples.jsonl", pairs)
    return RLHFConfig(
        model=str(folder / "model"),
        prompts=str(folder / "prompts.txt"),
        out=str(folder / "chain"),
        sft_data=str(folder / "examples.jsonl"),
        rounds=2,
        labels=LabelingConfig(gold="vowels", num_pairs=12, noise=0.0),
        num_compared=4,
        sft=FineTuningStage(num_updates=2, batch_size=2, row_length=32, max_new_tokens=4),
        reward_model=RewardModelStage(
            num_updates=2,
            batch_size=4,
            evaluation_fraction=0.3,
            optimizer=AdamWConfig(learning_rate=1e-3),
            normalisation=NormalisationConfig(num_samples=4),
        ),
        ppo=PPOStage(
            num_updates=1,
            batch_size=4,
            num_samples=2,
            answers=AnswerConfig(max_new_tokens=6, missing_stop_score=-1.0),
            ppo=PPOConfig(num_epochs=1),
        ),
    )
