"""TRL's RLOO step: one step with NUM_ANSWERS completions of at most NUM_TOKENS tokens, beta 0.05, float32.

    python trl_rloo_step.py MODEL PROMPTS NUM_ANSWERS NUM_TOKENS GROUP_SIZE FEWEST_TOKENS STOPS

PROMPTS and STOPS are JSON: texts, and ids of tokens that end a completion after FEWEST_TOKENS tokens.

Runs in its own interpreter, in alternation (see turns.py).
"""

import json
import sys
import tempfile
import time

import torch
import trl  # pyright: ignore[reportMissingImports]
import turns
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl
from trl import RLOOConfig, RLOOTrainer  # pyright: ignore[reportMissingImports]

MOST_STEPS = 1000
LARGEST_BATCH = 16  # completions per forward pass: their logits need several GB; all are generated together


class Turns(TrainerCallback):
    """One step per turn; training stops after the last turn."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: object, state: object, control: TrainerControl, **kwargs: object) -> None:
        turns.report(self._start)
        control.should_training_stop = not turns.wait_for_turn()


def main(
    model_name: str,
    prompts: list[str],
    num_answers: int,
    num_tokens: int,
    group_size: int,
    fewest_tokens: int,
    stops: list[int],
) -> None:
    turns.wait_for_turn()
    with tempfile.TemporaryDirectory() as folder:
        config = RLOOConfig(
            output_dir=folder,
            per_device_train_batch_size=min(num_answers, LARGEST_BATCH),
            gradient_accumulation_steps=max(1, num_answers // LARGEST_BATCH),
            num_generations=group_size,
            max_completion_length=num_tokens,
            generation_kwargs={"min_new_tokens": fewest_tokens} | ({"eos_token_id": stops} if stops else {}),
            beta=0.05,
            max_steps=MOST_STEPS,
            learning_rate=1e-6,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
        )
        trainer = RLOOTrainer(
            model=model_name,
            reward_funcs=lambda completions, **kwargs: [float(len(text.split())) for text in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts * num_answers}),
            callbacks=[Turns()],
        )
        trainer.train()
    turns.finish({"torch": torch.__version__, "trl": trl.__version__})


if __name__ == "__main__":
    name, texts, size, longest, group, fewest, ends = sys.argv[1:]
    main(name, json.loads(texts), int(size), int(longest), int(group), int(fewest), json.loads(ends))
