"""Completions with their log-probabilities under the initial model, for methods that learn from preferences."""

import logging
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Int

from jaxrl_lm import checks, data, distributed
from jaxrl_lm.algorithms.sequences import ReferencedRows, sequence_log_probs
from jaxrl_lm.algorithms.supervised import AdamWConfig
from jaxrl_lm.data import EncodedText, PackedRows, Text
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.language_model import LoadedModel
from jaxrl_lm.training.offline.task import OfflineRunConfig, in_batches, longest_sequence, take_rows

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreferenceRunConfig(OfflineRunConfig):
    """Settings of every run that trains a language model on preferences; the initial model is the reference.

    Attributes:
        max_tokens: maximum length of prompt and completion; longer completions are truncated. None uses the model's
            context, at most 1,024.
        optimizer: AdamW and its schedule.
    """

    max_tokens: int | None = None
    optimizer: AdamWConfig = field(default_factory=lambda: AdamWConfig(learning_rate=1e-6))

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 2, "max_tokens", why="each token is predicted from earlier ones")

    def encode(
        self, examples: list[list[tuple[Text, Text]]], loaded: LoadedModel, option: str
    ) -> tuple[list[tuple[EncodedText, ...]], Int[np.ndarray, " N"]]:
        """Tokens of the completions of each example.

        Completions longer than `max_tokens` are truncated, and an example with a completion of which nothing is left
        is dropped; a warning says how many.

        Args:
            examples: K prompts with a completion each, the same K for every example.
            loaded: the model whose tokenizer encodes them.
            option: the option that they come from.

        Returns:
            The sequences of each example that is kept, and the examples' indices.

        Raises:
            InputError: no example is kept.
        """
        longest = longest_sequence("max_tokens", self.max_tokens, loaded.model.config.max_positions)
        found, kept, num_cut = [], [], 0
        for index, example in enumerate(examples):
            whole = [data.encode_completion(prompt, text, loaded.tokenizer) for prompt, text in example]
            num_cut += any(len(each.ids) > longest for each in whole)
            sequences = tuple(each[:longest] for each in whole)
            if all(max(1, each.num_prompt_tokens) < len(each.ids) for each in sequences):
                found.append(sequences)
                kept.append(index)
        if num_cut or len(found) < len(examples):
            _log.warning(
                "%s: of %d examples, %d were truncated at max_tokens=%d, and %d dropped because no completion token "
                "was left",
                *(option, len(examples), num_cut, longest, len(examples) - len(found)),
            )
        if not found:
            raise InputError(f"{option}: no example has a completion within max_tokens={longest}; raise it")
        return found, np.array(kept)

    def with_reference(self, sequences: list[tuple[EncodedText, ...]], loaded: LoadedModel) -> ReferencedRows:
        """Rows of N examples of K sequences, with their log-probabilities under the initial model."""
        rows = one_row_each(sequences)
        log_probs = jax.jit(lambda params, batch: sequence_log_probs(loaded.model, params, batch))
        found = [
            distributed.on_host(log_probs(loaded.params, distributed.place_batch(take_rows(rows, chosen))))
            for chosen in in_batches(len(sequences), self.batch_size)
        ]
        return ReferencedRows(rows, np.concatenate(found)[: len(sequences)])


def one_row_each(sequences: list[tuple[EncodedText, ...]]) -> PackedRows:
    """N examples of K sequences as `PackedRows` `[N, K, T]`, with a row for each sequence; T is the longest."""
    flat = [each for example in sequences for each in example]
    width = max(len(each.ids) for each in flat)
    plan = [[index] for index in range(len(flat))]
    rows = data.pack_sequences(flat, plan, row_length=width, is_loss_on_all=False)
    return PackedRows(*(part.reshape(len(sequences), -1, width) for part in rows))
