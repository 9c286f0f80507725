"""Learning from given examples on the host: batches, evaluation, samples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jaxrl_lm import data
from jaxrl_lm.training.language_model import LoadedModel
from jaxrl_lm.training.offline.config import ExamplesRunConfig, OfflineRunConfig
from jaxrl_lm.types import PyTree, SupervisedLearner


@dataclass(frozen=True, kw_only=True)
class OfflineTask:
    """What stays the same during training.

    Attributes:
        config: the settings.
        title: of the report.
        loaded: the model that training starts from.
        learner: the algorithm.
        num_updates: updates of the whole run.
        take_batch: the batch of update k, leaves `[num_accumulated, B, ...]`; a function of k and the seed.
        count_tokens: how many tokens of a batch are not padding.
        evaluation_batches: leaves `[B, ...]`, all of one shape.
        sample_prompts: prompts to answer before and after: text and tokens.
        fingerprints: checksums of the examples, by the option that names them.
        summarize: adds to a batch's mean metrics what is no mean, such as the perplexity.
    """

    config: OfflineRunConfig
    title: str
    loaded: LoadedModel
    learner: SupervisedLearner
    num_updates: int
    take_batch: Callable[[int], PyTree]
    count_tokens: Callable[[PyTree], int]
    evaluation_batches: list[PyTree]
    sample_prompts: list[tuple[str, list[int]]]
    fingerprints: dict[str, int]
    summarize: Callable[[dict[str, float]], dict[str, float]] = dict


def is_evaluation_due(config: ExamplesRunConfig, num_done: int, num_updates: int) -> bool:
    """Whether an evaluation follows the update."""
    return num_done % config.evaluate_every == 0 or num_done == num_updates


def fitting_prompts(
    prompts: list[tuple[str, list[int]]], loaded: LoadedModel, config: OfflineRunConfig
) -> list[tuple[str, list[int]]]:
    """The first `num_samples` prompts that leave room for an answer; those of no token are left out."""
    longest = loaded.model.config.max_positions - config.max_new_tokens
    return [prompt for prompt in prompts if 0 < len(prompt[1]) <= longest][: config.num_samples]


def rows_of_update(config: ExamplesRunConfig, num_rows: int, num_done: int) -> Int[np.ndarray, "A B"]:
    """Indices of the rows that update `num_done` learns from, `[num_accumulated, batch_size]`."""
    shape = (config.num_accumulated, config.batch_size)
    return data.prompt_order(num_rows, shape[0] * shape[1], num_done, config.seed).reshape(shape)


def in_batches(num_rows: int, batch_size: int) -> Int[np.ndarray, "N B"]:
    """Indices of all rows in batches of one size, -1 after the last."""
    indices = np.arange(-(-num_rows // batch_size) * batch_size)
    return np.where(indices < num_rows, indices, -1).reshape(-1, batch_size)
