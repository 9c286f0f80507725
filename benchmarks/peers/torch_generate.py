"""transformers' `generate` in torch: seconds of NUM_ANSWERS sampled answers of NUM_TOKENS tokens.

    python torch_generate.py MODEL PROMPT NUM_ANSWERS NUM_TOKENS REPEATS

Runs in an interpreter of its own; prints one JSON line.
"""

import json
import statistics
import sys
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_name: str, prompt: str, num_answers: int, num_tokens: int, repeats: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
    inputs = tokenizer([prompt] * num_answers, return_tensors="pt")
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                **inputs, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=True, temperature=1.0, top_k=0
            )
        seconds.append(time.perf_counter() - start)
    seconds = seconds[1:]
    median = statistics.median(seconds)
    print(
        json.dumps(
            {
                "seconds": {"min": min(seconds), "median": median, "max": max(seconds)},
                "tokens_per_s": num_answers * num_tokens / median,
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            }
        )
    )


if __name__ == "__main__":
    name, text, *numbers = sys.argv[1:]
    main(name, text, *map(int, numbers))
