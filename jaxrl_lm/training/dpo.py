"""Direct preference optimization of a language model, from a file of pairs to a model folder."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxrl_lm import data, storage
from jaxrl_lm.algorithms import PairRows, make_dpo, make_pair_loss, sequence_log_probs
from jaxrl_lm.core.checksums import checksum_arrays, checksum_value
from jaxrl_lm.data import EncodedText, PackedRows, Preference
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.training.judgements import labels_tokenizer
from jaxrl_lm.training.supervised import (
    SupervisedTask,
    fitting_prompts,
    load_model,
    report_title,
    train_supervised,
    updates_of,
)
from jaxrl_lm.training.supervised_config import DPOConfig
from jaxrl_lm.types import PyTree

Pair = tuple[EncodedText, EncodedText]

SHOWN = ("loss/total", "rewards/margin", "rewards/accuracy")
_LONGEST_ANSWER = 1024  # tokens, prompt included
_log = logging.getLogger(__name__)


def train_dpo(config: DPOConfig) -> storage.RunFolder:
    """Learn from preferences, and leave a run folder with metrics, checkpoints, plots, samples, report and model.

    Raises:
        InputError: an input is not what it must be; raised before the run folder is made where it can be known then.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: the loss is not finite.
    """
    return train_supervised(config, lambda: load_dpo_task(config))


def load_dpo_task(config: DPOConfig) -> tuple[SupervisedTask, PyTree]:
    """Load model, tokenizer and pairs, and compute the reference's log-probabilities of all answers.

    Returns:
        what stays the same, and the parameters to train.

    Raises:
        InputError: one of them is not what it must be.
    """
    train, held_out = read_pairs(config)
    model, params, tokenizer = load_model(config)
    max_tokens = _max_tokens(config, model.config.max_positions)
    train_ids, held_out_ids = (encode_pairs(pairs, tokenizer, max_tokens) for pairs in (train, held_out))
    if not train_ids:
        raise InputError(f"preferences: no pair has an answer within max_tokens={max_tokens}; raise it")
    width = max(len(each.ids) for pair in train_ids + held_out_ids for each in pair)
    pairs, held_out_pairs = (
        _with_reference(config, model, params, to_rows(each, width)) for each in (train_ids, held_out_ids)
    )
    num_updates = updates_of(config, len(train_ids), config.batch_size)
    prompts = [chosen.ids[: chosen.num_prompt_tokens] for chosen, _ in held_out_ids or train_ids]
    task = SupervisedTask(
        config=config,
        title=report_title("Direct preference optimization", config),
        shown=SHOWN,
        model=model,
        tokenizer=tokenizer,
        algorithm=make_dpo(config.optimizer, config.dpo, model, num_updates=num_updates),
        loss=make_pair_loss(model),
        num_updates=num_updates,
        take_batch=_make_take_batch(config, pairs),
        count_tokens=lambda batch: int(np.sum(batch.rows.segment_ids > 0)),
        evaluation_batches=_in_batches(held_out_pairs, config.batch_size),
        summarize=dict,
        sample_prompts=fitting_prompts([(tokenizer.decode(ids), ids) for ids in prompts], model, config),
        fingerprints={"preferences": checksum_value([train_ids, held_out_ids]), "model": checksum_arrays(params)},
    )
    return task, params


def read_pairs(config: DPOConfig) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out pairs.

    Raises:
        InputError: a file or the labels' tokenizer is not what it must be.
    """
    tokenizer = labels_tokenizer(config)
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
        chosen, rejected = (
            EncodedText(ids=each.ids[:max_tokens], num_prompt_tokens=each.num_prompt_tokens) for each in whole
        )
        if all(max(1, each.num_prompt_tokens) < len(each.ids) for each in (chosen, rejected)):
            found.append((chosen, rejected))
    if num_cut or len(found) < len(pairs):
        _log.warning(
            "of %d pairs, %d were cut at max_tokens=%d, and %d left out because nothing of an answer is left",
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
    found = [np.asarray(of_batch(params, take_pairs(rows, chosen))) for chosen in _batches_of(num_pairs, batch_size)]
    return np.concatenate([*found, np.zeros((0, 2), np.float32)])[:num_pairs]


def take_pairs(rows: PackedRows, indices: np.ndarray) -> PackedRows:
    """Pairs by their indices, -1 for padding, `[*B, 2, T]`."""
    is_real = (indices >= 0)[..., None, None]
    return PackedRows(*(np.where(is_real, part[indices], 0).astype(part.dtype) for part in rows))


def _with_reference(config: DPOConfig, model: CausalLM, params: PyTree, rows: PackedRows) -> PairRows:
    return PairRows(rows, reference_log_probs(model, params, rows, config.batch_size))


def _max_tokens(config: DPOConfig, context: int) -> int:
    if config.max_tokens is None:
        return min(context, _LONGEST_ANSWER)
    if config.max_tokens > context:
        raise InputError(
            f"max_tokens={config.max_tokens}: the model's context is {context} tokens; choose at most as many"
        )
    return config.max_tokens


def _take(pairs: PairRows, indices: np.ndarray) -> PairRows:
    reference = np.where((indices >= 0)[..., None], pairs.reference_log_probs[indices], 0.0)
    return PairRows(take_pairs(pairs.rows, indices), reference.astype(np.float32))


def _make_take_batch(config: DPOConfig, pairs: PairRows) -> Callable[[int], PairRows]:
    size = config.num_accumulated * config.batch_size

    def take(num_done: int) -> PairRows:
        chosen = data.prompt_order(len(pairs.rows.ids), size, num_done, config.seed)
        return _take(pairs, chosen.reshape(config.num_accumulated, config.batch_size))

    return take


def _in_batches(pairs: PairRows, batch_size: int) -> list[PairRows]:
    return [_take(pairs, chosen) for chosen in _batches_of(len(pairs.rows.ids), batch_size)]


def _batches_of(count: int, batch_size: int) -> np.ndarray:
    """Indices in batches of one size, -1 behind the last."""
    indices = np.arange(-(-count // batch_size) * batch_size)
    return np.where(indices < count, indices, -1).reshape(-1, batch_size)
