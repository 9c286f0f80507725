"""Whether learning computes the probabilities that decoding sampled with: the ratios of both, over shapes and dtypes.

    python benchmarks/on_policy.py --model FOLDER

For each dtype completions are decoded in several ways, and scored in several ways. A row of the report is the largest
|ratio - 1|, the share of tokens whose ratio leaves [0.9, 1.1], and whether the numbers equal those of the first row bit
for bit. Reference: TRL's issue 6789, where 7.5 % of the tokens of Qwen2.5-0.5B leave this interval in bfloat16.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measure import RESULTS, write_results
from ragged_step import PROMPTS

from jaxrl_lm import data, distributed, rollouts
from jaxrl_lm.benchmarking.config import DIALOGUE
from jaxrl_lm.benchmarking.timing import environment
from jaxrl_lm.distributed import MeshConfig
from jaxrl_lm.models import logical_axes
from jaxrl_lm.rollouts import Generation, SamplingConfig
from jaxrl_lm.rollouts.generation import generation_program
from jaxrl_lm.training.language_model import LoadedModel, load_model
from jaxrl_lm.training.settings import Dtype


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Compare the probabilities of decoding and of learning.

    Attributes:
        model: folder or hub id; committed results use SmolLM2-135M-Instruct.
        group_size: completions of each of the eight prompts.
        most_tokens: longest completion.
        stop: single-token text that ends a completion.
        out: JSON file for the results; committed results are in benchmarks/results/.
        debug: tiny sizes, to test the script in seconds.
    """

    model: str = os.environ.get("JAXRL_LM_SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")
    group_size: int = 4
    most_tokens: int = 64
    stop: str = "\n"
    out: Path = RESULTS / "on_policy.json"
    debug: bool = False


DEBUG: dict[str, Any] = {"model": str(DIALOGUE), "group_size": 2, "most_tokens": 6, "stop": "e"}


class Case:
    """One dtype: a model, prompts, and what was decoded."""

    def __init__(self, benchmark: Benchmark, dtype: Dtype) -> None:
        """Load the model and decode once, as training does."""
        self.benchmark = benchmark
        self.loaded: LoadedModel = load_model(benchmark.model, dtype=dtype)
        tokenizer = self.loaded.tokenizer
        self.sampling = SamplingConfig(
            max_new_tokens=benchmark.most_tokens,
            stop_tokens=data.stop_token_ids(tokenizer, (benchmark.stop,)),
            pad_token=data.padding_token(tokenizer),
        )
        self.ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        self.generation = self.generate(max(map(len, self.ids)))

    def prompts(self, width: int, times: int) -> tuple[np.ndarray, np.ndarray]:
        """The prompts at a width, each several times."""
        padded = data.left_pad(self.ids, pad_id=self.sampling.pad_token, width=width)
        ids, mask = (np.repeat(x, times, axis=0) for x in padded)
        return ids, mask

    def generate(self, width: int) -> Generation:
        """As training decodes: the prompt of a group once, in stages."""
        size = self.benchmark.group_size
        model, params = self.loaded.model, self.loaded.params
        return rollouts.generate(
            model, params, *self.prompts(width, 1), jax.random.key(0), self.sampling, per_prompt=size
        )

    def generate_plainly(self, width: int) -> Generation:
        """The same in one program, with the prompt of a group in every row."""
        model, params = self.loaded.model, self.loaded.params
        prompts = map(jnp.asarray, self.prompts(width, self.benchmark.group_size))
        return generation_program(model, params, *prompts, jax.random.key(0), self.sampling, True)

    def score(self, generation: Generation) -> np.ndarray:
        """Log-probabilities `[B, T]` as learning computes them."""
        return np.asarray(rollouts.answer_log_probs(self.loaded.model, self.loaded.params, generation))

    def decoded(self) -> Iterator[tuple[str, Generation]]:
        """Ways to decode."""
        width = max(map(len, self.ids))
        yield "as in training: prompts shared, in stages", self.generation
        yield "one program, prompts repeated", self.generate_plainly(width)
        yield "16 columns more of padding", self.generate(width + 16)

    def scored(self) -> Iterator[tuple[str, np.ndarray]]:
        """Ways to score what was decoded as in training."""
        generation, batch = self.generation, len(self.generation.sequences)
        yield "padded rows", self.score(generation)
        yield "16 columns more of padding", self.score(_wider(generation, 16, self.sampling.pad_token))
        for size in (batch // 2, batch // 4, 1):
            parts = [self.score(_rows(generation, slice(at, at + size))) for at in range(0, batch, size)]
            yield f"micro-batches of {size} row{'s' * (size > 1)}", np.concatenate(parts)
        on_host = distributed.on_host(generation)
        packed = rollouts.packed(self.loaded.model, generation, on_host, [np.arange(batch)[None]])
        yield f"packed ({packed.packing})", self.score(packed)
        for mesh in (MeshConfig(data=4, fsdp=1), MeshConfig(fsdp=4), MeshConfig(data=2, fsdp=2)):
            with distributed.use_mesh(distributed.make_mesh(mesh)):
                params = distributed.place_params(self.loaded.params, logical_axes(self.loaded.model))
                found = rollouts.answer_log_probs(self.loaded.model, params, distributed.place_batch(on_host))
                yield f"mesh data={mesh.data} fsdp={mesh.fsdp}", np.asarray(found)

    def report(self) -> dict[str, Any]:
        """All rows."""
        mask = np.asarray(self.generation.response_mask) > 0
        rows, first = {}, None
        for name, log_probs in self.scored():
            rows[f"score: {name}"] = _compare(log_probs, np.asarray(self.generation.log_probs), mask)
            if first is None:
                first = log_probs
            else:
                rows[f"score: {name}"]["bitwise equal"] = bool(np.array_equal(log_probs, first))
        for name, generation in self.decoded():
            tokens = np.asarray(generation.response_mask) > 0
            rows[f"decode: {name}"] = _compare(self.score(generation), np.asarray(generation.log_probs), tokens)
        return {"tokens": int(mask.sum()), "rows": rows}


def _compare(ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    error = np.abs(np.expm1(ours.astype(np.float64) - theirs))[mask]
    return {"largest error": float(error.max()), "outside": float(np.mean(error > 0.1))}


def _rows(generation: Generation, rows: slice) -> Generation:
    return jax.tree.map(lambda leaf: leaf[rows] if np.ndim(leaf) else leaf, generation)


def _wider(generation: Generation, more: int, pad: int) -> Generation:
    """The generation with more padding on its left."""

    def widen(leaf: jax.Array, value: int) -> jax.Array:
        return jnp.pad(leaf, ((0, 0), (more, 0)), constant_values=value)

    return replace(
        generation, sequences=widen(generation.sequences, pad), attention_mask=widen(generation.attention_mask, 0)
    )


def main(benchmark: Benchmark) -> None:
    """Measure both dtypes, print a table, write."""
    benchmark = replace(benchmark, **DEBUG) if benchmark.debug else benchmark
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    found = {dtype: Case(benchmark, dtype).report() for dtype in dtypes}
    for dtype, report in found.items():
        print(
            f"\n| {dtype}, {report['tokens']:,} tokens | largest error | outside [0.9, 1.1] | bitwise |"
            "\n|---|---|---|---|"
        )
        for name, row in report["rows"].items():
            equal = {True: "yes", False: "no", None: ""}[row.get("bitwise equal")]
            print(f"| {name} | {row['largest error']:.1e} | {100 * row['outside']:.2f} % | {equal} |")
    write_results(benchmark.out, {"environment": environment(), **found})


if __name__ == "__main__":
    # JAX reads this with its first operation.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    main(tyro.cli(Benchmark))
