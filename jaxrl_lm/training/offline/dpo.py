"""Direct preference optimization of a language model: its settings, and what it loads."""

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float

from jaxrl_lm import checks, data
from jaxrl_lm.algorithms.dpo import DPOLossConfig, PairRows, make_dpo, sequence_log_probs
from jaxrl_lm.algorithms.supervised import AdamWConfig
from jaxrl_lm.core.checksums import checksum_value
from jaxrl_lm.data import EncodedText, PackedRows, Preference
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.training.language_model import load_model
from jaxrl_lm.training.offline.config import OfflineRunConfig
from jaxrl_lm.training.offline.task import OfflineTask, fitting_prompts, in_batches, rows_of_update
from jaxrl_lm.training.reward_model.judgements import labels_tokenizer
from jaxrl_lm.types import PyTree

Pair = tuple[EncodedText, EncodedText]

_LONGEST_ANSWER = 1024  # tokens, prompt included
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DPORunConfig(OfflineRunConfig):
    """Direct preference optimization of a language model on preference pairs; the initial model is the reference.

    Attributes:
        preferences: rows with `prompt`, `chosen` and `rejected`, or another form of pairs: .jsonl, .json, .csv, .tsv,
            .parquet, each also .gz, or hub:NAME[[:CONFIG]:SPLIT].
        labels_tokenizer: folder or hub id of the tokenizer of labels given as token ids, such as OpenAI's; None uses
            that of `model`, which must then have all ids but one (padding).
        batch_size: pairs per batch.
        max_tokens: maximum length of prompt and completion; longer completions are truncated. None uses the model's
            context, at most 1,024.
        optimizer: AdamW and its schedule.
        dpo: DPO loss.
    """

    SHOWN: ClassVar[tuple[str, ...]] = (
        "loss/total",
        "rewards/margin",
        "rewards/accuracy",
        "rewards/chosen",
        "rewards/rejected",
        "evaluation/loss",
        "evaluation/accuracy",
        "time/tokens_per_second",
    )

    preferences: str
    labels_tokenizer: str | None = None
    max_tokens: int | None = None
    optimizer: AdamWConfig = field(default_factory=lambda: AdamWConfig(learning_rate=1e-6))
    dpo: DPOLossConfig = field(default_factory=DPOLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 2, "max_tokens", why="each token is predicted from earlier ones")

    def load(self) -> OfflineTask:
        return load_dpo(self)


def load_dpo(config: DPORunConfig) -> OfflineTask:
    """Load model, tokenizer and pairs, and compute the reference's log-probabilities of all answers.

    Raises:
        InputError: one of them is not what it must be.
    """
    train, held_out = read_pairs(config)
    loaded = load_model(config.model, dtype=config.dtype, remat=config.remat)
    model, params, tokenizer = loaded.model, loaded.params, loaded.tokenizer
    max_tokens = _max_tokens(config, model.config.max_positions)
    train_ids, held_out_ids = (encode_pairs(pairs, tokenizer, max_tokens) for pairs in (train, held_out))
    if not train_ids:
        raise InputError(f"preferences: no pair has a completion within max_tokens={max_tokens}; raise it")
    width = max(len(each.ids) for pair in train_ids + held_out_ids for each in pair)
    pairs, held_out_pairs = (
        _with_reference(config, model, params, to_rows(each, width)) for each in (train_ids, held_out_ids)
    )
    num_updates = config.updates_of(len(train_ids))
    prompts = [chosen.ids[: chosen.num_prompt_tokens] for chosen, _ in held_out_ids or train_ids]
    return OfflineTask(
        config=config,
        title="Direct preference optimization",
        loaded=loaded,
        learner=make_dpo(config.optimizer, config.dpo, model, num_updates=num_updates),
        num_updates=num_updates,
        take_batch=lambda num_done: _take(pairs, rows_of_update(config, len(train_ids), num_done)),
        count_tokens=lambda batch: int(np.sum(batch.rows.segment_ids > 0)),
        evaluation_batches=[_take(held_out_pairs, rows) for rows in in_batches(len(held_out_ids), config.batch_size)],
        sample_prompts=fitting_prompts([(tokenizer.decode(ids), ids) for ids in prompts], loaded, config),
        fingerprints={"preferences": checksum_value([train_ids, held_out_ids])},
    )


def read_pairs(config: DPORunConfig) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out pairs.

    Raises:
        InputError: a file or the labels' tokenizer is not what it must be.
    """
    tokenizer = labels_tokenizer(config.model, config.labels_tokenizer)
    pairs = data.read_preferences(config.preferences, tokenizer=tokenizer)
    if config.evaluation is not None:
        return pairs, data.read_preferences(config.evaluation, tokenizer=tokenizer)
    groups = [repr(pair.prompt or pair) for pair in pairs]
    return data.hold_out(pairs, groups, fraction=config.evaluation_fraction, seed=config.seed)


def encode_pairs(pairs: list[Preference], tokenizer: Any, max_tokens: int) -> list[Pair]:
    """Both answers of each pair behind their prompt; too long ones lose their end, and a pair that is left without a
    token of either answer is left out, which the log says."""
    found, num_cut = [], 0
    for pair in pairs:
        whole = [data.encode_completion(pair.prompt, text, tokenizer) for text in (pair.chosen, pair.rejected)]
        num_cut += any(len(each.ids) > max_tokens for each in whole)
        chosen, rejected = (each[:max_tokens] for each in whole)
        if all(max(1, each.num_prompt_tokens) < len(each.ids) for each in (chosen, rejected)):
            found.append((chosen, rejected))
    if num_cut or len(found) < len(pairs):
        _log.warning(
            "of %d pairs, %d were truncated at max_tokens=%d, and %d dropped because no completion token was left",
            *(len(pairs), num_cut, max_tokens, len(pairs) - len(found)),
        )
    return found


def to_rows(pairs: list[Pair], width: int) -> PackedRows:
    """A row an answer, `[N, 2, width]`."""
    sequences = [each for pair in pairs for each in pair]
    plan = [[index] for index in range(len(sequences))]
    rows = data.pack_sequences(sequences, plan, row_length=width, is_loss_on_all=False)
    return PackedRows(*(part.reshape(-1, 2, width) for part in rows))


def reference_log_probs(model: CausalLM, params: PyTree, rows: PackedRows, batch_size: int) -> Float[np.ndarray, "N 2"]:
    """log pi_ref of each answer, nats, computed in batches of `batch_size` pairs."""

    @jax.jit
    def of_batch(params: PyTree, batch: PackedRows) -> jax.Array:
        flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch)
        return sequence_log_probs(model, params, flat).reshape(-1, 2)

    num_pairs = len(rows.ids)
    found = [np.asarray(of_batch(params, take_pairs(rows, chosen))) for chosen in in_batches(num_pairs, batch_size)]
    return np.concatenate([*found, np.zeros((0, 2), np.float32)])[:num_pairs]


def take_pairs(rows: PackedRows, indices: np.ndarray) -> PackedRows:
    """Pairs by their indices, -1 for padding, `[*B, 2, T]`."""
    is_real = (indices >= 0)[..., None, None]
    return PackedRows(*(np.where(is_real, part[indices], 0).astype(part.dtype) for part in rows))


def _with_reference(config: DPORunConfig, model: CausalLM, params: PyTree, rows: PackedRows) -> PairRows:
    return PairRows(rows, reference_log_probs(model, params, rows, config.batch_size))


def _max_tokens(config: DPORunConfig, context: int) -> int:
    if config.max_tokens is None:
        return min(context, _LONGEST_ANSWER)
    if config.max_tokens > context:
        raise InputError(
            f"max_tokens={config.max_tokens}: the model's context is {context} tokens; choose at most that many"
        )
    return config.max_tokens


def _take(pairs: PairRows, indices: np.ndarray) -> PairRows:
    reference = np.where((indices >= 0)[..., None], pairs.reference_log_probs[indices], 0.0)
    return PairRows(take_pairs(pairs.rows, indices), reference.astype(np.float32))
