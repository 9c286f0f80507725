"""transformers' `generate` in torch: NUM_ANSWERS sampled completions of NUM_TOKENS tokens for equal prompts.

    python torch_generate.py MODEL PROMPT NUM_ANSWERS NUM_TOKENS

Runs in its own interpreter, in alternation (see turns.py).
"""

import sys
import time

import torch
import transformers
import turns
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_name: str, prompt: str, num_answers: int, num_tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
    inputs = tokenizer([prompt] * num_answers, return_tensors="pt")
    while turns.wait_for_turn():
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                **inputs, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=True, temperature=1.0, top_k=0
            )
        turns.report(start)
    turns.finish({"torch": torch.__version__, "transformers": transformers.__version__})


if __name__ == "__main__":
    name, text, *numbers = sys.argv[1:]
    main(name, text, *map(int, numbers))
