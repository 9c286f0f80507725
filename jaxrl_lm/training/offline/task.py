"""Training a language model on given examples: the interface of a method, and what its run loads."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Int

from jaxrl_lm import data
from jaxrl_lm.core.checksums import checksum_value
from jaxrl_lm.data import EncodedText, PackedRows
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.language_model import LoadedModel, check_batch, load_model
from jaxrl_lm.training.offline.config import ExamplesRunConfig, OfflineStageConfig
from jaxrl_lm.types import PyTree, SupervisedLearner

_LONGEST_SEQUENCE = 1024  # tokens, where no option says otherwise
_LONGEST_TEXT_PROMPT = 32  # tokens of a text that a sample begins with


@dataclass(frozen=True, kw_only=True)
class ExampleRows:
    """Examples as arrays.

    Attributes:
        arrays: a pytree of NumPy arrays `[N, ...]`, of which a batch takes some rows; its tokens are in `PackedRows`.
        sequences: the tokens of each example, one or several sequences; samples are drawn for the prompt of the first.
    """

    arrays: PyTree
    sequences: list[tuple[EncodedText, ...]]

    @property
    def num_rows(self) -> int:
        """N."""
        return len(jax.tree.leaves(self.arrays)[0])


@dataclass(frozen=True, kw_only=True)
class OfflineRunConfig(OfflineStageConfig, ExamplesRunConfig):
    """Settings of every run that trains a language model on examples.

    A method is a subclass with `TITLE`, `EXAMPLES`, `SHOWN`, `read`, `make_rows` and `make_learner`.
    """

    TITLE: ClassVar[str] = ""
    """Name of the method, for the report."""
    EXAMPLES: ClassVar[str] = ""
    """The option that names the training data."""

    def read(self, source: str) -> list[Any]:
        """Read the examples of a file or data set.

        Raises:
            InputError: it is invalid.
        """
        raise NotImplementedError

    def make_rows(self, examples: list[Any], loaded: LoadedModel, option: str) -> ExampleRows:
        """Turn examples into arrays.

        Args:
            examples: as `read` returns them; at least one.
            loaded: the initial model, which is also the reference.
            option: the option that they come from, for errors and warnings.

        Raises:
            InputError: nothing is left to learn from.
        """
        raise NotImplementedError

    def summarize(self, metrics: dict[str, float]) -> dict[str, float]:
        """Add to the mean metrics of examples what is not a mean, such as the perplexity."""
        return metrics


@dataclass(frozen=True, kw_only=True)
class OfflineTask:
    """What stays the same during training.

    Attributes:
        config: the settings.
        loaded: the model that training starts from.
        learner: the algorithm.
        num_updates: updates of the whole run.
        take_batch: the batch of update k, leaves `[num_accumulated, B, ...]`; a function of k and the seed.
        evaluation_batches: leaves `[B, ...]`, all of one shape.
        sample_prompts: prompts to complete before and after: text and tokens.
        fingerprints: checksums of the examples, by the option that names them.
    """

    config: OfflineRunConfig
    loaded: LoadedModel
    learner: SupervisedLearner
    num_updates: int
    take_batch: Callable[[int], PyTree]
    evaluation_batches: list[PyTree]
    sample_prompts: list[tuple[str, list[int]]]
    fingerprints: dict[str, int]


def load_task(config: OfflineRunConfig) -> OfflineTask:
    """Load model, tokenizer and examples.

    Raises:
        InputError: one of them is invalid.
    """
    examples, held_out_examples = read_split(config)
    check_batch({"batch_size": config.batch_size})
    loaded = load_model(config.model, **config.model_options).with_adapters(config.lora, config.seed)
    training = config.make_rows(examples, loaded, config.EXAMPLES)
    held_out = config.make_rows(held_out_examples, loaded, "evaluation") if held_out_examples else None
    evaluation_batches, sequences = [], training.sequences
    if held_out is not None:
        chosen = in_batches(held_out.num_rows, config.batch_size)
        evaluation_batches = [take_rows(held_out.arrays, indices) for indices in chosen]
        sequences = held_out.sequences
    num_rows = training.num_rows
    num_updates = config.updates_of(num_rows)
    return OfflineTask(
        config=config,
        loaded=loaded,
        learner=config.make_learner(loaded.model, num_updates=num_updates),
        num_updates=num_updates,
        take_batch=lambda num_done: take_rows(training.arrays, rows_of_update(config, num_rows, num_done)),
        evaluation_batches=evaluation_batches,
        sample_prompts=_sample_prompts(sequences, loaded, config),
        fingerprints={
            config.EXAMPLES: checksum_value([examples, held_out_examples, training.sequences, sequences]),
        },
    )


def read_split(config: OfflineRunConfig) -> tuple[list[Any], list[Any]]:
    """Training and held-out examples; those of one prompt are on one side.

    Raises:
        InputError: a file is invalid, or nothing is left to train on.
    """
    examples = config.read(getattr(config, config.EXAMPLES))
    if config.evaluation is not None:
        return examples, config.read(config.evaluation)
    groups = [repr(getattr(each, "prompt", None) or each) for each in examples]
    return data.hold_out(examples, groups, fraction=config.evaluation_fraction, seed=config.seed)


def longest_sequence(option: str, value: int | None, context: int) -> int:
    """The option's value, at most the model's context in tokens; without a value at most 1,024.

    Raises:
        InputError: the value is beyond the context.
    """
    if value is None:
        return min(context, _LONGEST_SEQUENCE)
    if value > context:
        raise InputError(f"{option}={value}: the model's context is {context} tokens; choose at most that many")
    return value


def is_evaluation_due(config: ExamplesRunConfig, num_done: int, num_updates: int) -> bool:
    """Whether an evaluation follows the update."""
    return num_done % config.evaluate_every == 0 or num_done == num_updates


def rows_of_update(config: ExamplesRunConfig, num_rows: int, num_done: int) -> Int[np.ndarray, "A B"]:
    """Indices of the rows that update `num_done` learns from, `[num_accumulated, batch_size]`."""
    shape = (config.num_accumulated, config.batch_size)
    return data.prompt_order(num_rows, shape[0] * shape[1], num_done, config.seed).reshape(shape)


def in_batches(num_rows: int, batch_size: int) -> Int[np.ndarray, "N B"]:
    """Indices of all rows in batches of one size, -1 after the last."""
    indices = np.arange(-(-num_rows // batch_size) * batch_size)
    return np.where(indices < num_rows, indices, -1).reshape(-1, batch_size)


def take_rows(arrays: PyTree, indices: Int[np.ndarray, "*B"]) -> PyTree:
    """Rows of arrays `[N, ...]` by their indices, `[*B, ...]`; -1 gives a row of zeros, which is padding."""

    def take(array: np.ndarray) -> np.ndarray:
        is_real = (indices >= 0).reshape(*indices.shape, *(1 for _ in array.shape[1:]))
        return np.where(is_real, array[indices], 0).astype(array.dtype)

    return jax.tree.map(take, arrays)


def count_tokens(batch: PyTree) -> int:
    """How many tokens of a batch are not padding."""
    parts = jax.tree.leaves(batch, is_leaf=lambda part: isinstance(part, PackedRows))
    return sum(int(np.sum(part.segment_ids > 0)) for part in parts if isinstance(part, PackedRows))


def _sample_prompts(
    sequences: list[tuple[EncodedText, ...]], loaded: LoadedModel, config: OfflineRunConfig
) -> list[tuple[str, list[int]]]:
    """The first `num_samples` prompts that leave space for a completion; of a text, its first quarter."""
    longest = loaded.model.config.max_positions - config.max_new_tokens
    prompts = []
    for first, *_ in sequences:
        num_text_tokens = min(_LONGEST_TEXT_PROMPT, math.ceil(len(first.ids) / 4))
        prompts.append(first.ids[: first.num_prompt_tokens or num_text_tokens])
    fitting = [ids for ids in prompts if len(ids) <= longest][: config.num_samples]
    return [(loaded.tokenizer.decode(ids), ids) for ids in fitting]
