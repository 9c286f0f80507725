"""Mapping of checkpoint tensors to parameters, as in transformers."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import weights
from jaxrl_lm.models.config import Head, ModelConfig
from jaxrl_lm.models.families import Family
from jaxrl_lm.models.quantization import check_numbers
from jaxrl_lm.models.stored import Stored
from jaxrl_lm.models.weights import Format, TensorLayout

_log = logging.getLogger(__name__)

Shapes = dict[tuple[str, ...], Any]

# Buffers that older classes stored with the weights; transformers ignores them too.
_BUFFERS = re.compile(
    r"(^|\.)(attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias|rotary_emb\.inv_freq|position_ids)$"
)
_HEADS = ("lm_head", "score", "v_head", "classifier", "cls")
_ROWS_AT_A_TIME = 1024
_LANGUAGE_HEADS = ("lm_head", "cls")  # a reward model is expected to start from a language model
# TRL's `AutoModelForCausalLMWithValueHead` stores its head with the weights.
_TRL_VALUE_HEAD = {
    "v_head.summary.weight": ("value_head", "kernel"),
    "v_head.summary.bias": ("value_head", "bias"),
}


def layout_of(family: Family, kind: Format) -> TensorLayout:
    """Names and orientation of a family's tensors in a file format."""
    is_torch = kind == "safetensors"
    return TensorLayout(
        kind,
        prefix=family.prefix,
        is_output_first=family.is_torch_output_first if is_torch else family.is_flax_output_first,
        flax_norm_scale=family.flax_norm_scale,
    )


def resolve_tie(
    config: ModelConfig, tensors: Mapping[str, Stored], kind: Format, family: Family
) -> tuple[ModelConfig, Mapping[str, Stored]]:
    """Resolve the tying of embedding and unembedding in a decoder with tied embeddings in config.json.

    As in transformers, a file with different values for both is not tied, whatever config.json says, and a file with
    only the unembedding uses it for both. Where a file has both they are read to compare them, some rows at a time.

    Args:
        config: the model configuration.
        tensors: tensors by their current names in torch.
        kind: format of the file.
        family: the model family.
    """
    layout = layout_of(family, kind)
    head_name, _, turn = layout.locate(("lm_head", "embedding"))
    if not (family.is_causal and config.is_tied and head_name in tensors):
        return config, tensors
    names = layout.locate(("backbone", family.embedding, "embedding"))[:2]
    stored = next((name for name in names if name in tensors), None)
    unembedding = turn(tensors[head_name])
    if stored is None:
        return config, {**tensors, names[0]: unembedding}
    if _are_equal(tensors[stored], unembedding):
        return config, tensors
    _log.warning(
        "config.json says tie_word_embeddings=true, but %s and %s differ: both are used, untied, as in transformers",
        stored,
        head_name,
    )
    hf_json = json.dumps(config.hf_config() | {"tie_word_embeddings": False}, sort_keys=True)
    return replace(config, is_tied=False, hf_json=hf_json), tensors


def _are_equal(first: Stored, second: Stored) -> bool:
    if first.shape != second.shape or not first.ndim:
        return False
    blocks = [(slice(start, start + _ROWS_AT_A_TIME),) for start in range(0, first.shape[0], _ROWS_AT_A_TIME)]
    return all(np.array_equal(first[block], second[block]) for block in blocks)


def place(
    tensors: Mapping[str, Stored], kind: Format, family: Family, shapes: Shapes, head: Head | None, folder: Path
) -> dict[tuple[str, ...], Stored]:
    """Find our leaves among the file's tensors, which are not read; heads missing from the file are omitted.

    Args:
        tensors: tensors by their current names in torch.
        kind: format of the file.
        family: the model family.
        shapes: shapes of the parameters.
        head: the model's head.
        folder: the model folder, for messages.

    Raises:
        InputError: tensors are missing, have the wrong shape, are integers, or belong to layers that the model lacks.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.search(name.replace("/", "."))}
    check_numbers(tensors, folder)
    layout = layout_of(family, kind)
    found, used, absent = {}, set(), []
    for path, shape in shapes.items():
        if path[0] == "value_head":
            continue
        name, bare, turn = layout.locate(path)
        stored = name if name in tensors else bare
        if stored not in tensors:
            absent += [] if _is_score_head(path, family) else [name]
            continue
        used.add(stored)
        found[path] = _fit(turn(tensors[stored]), shape, stored, _why_misfit(path, family), folder)
    if absent:
        raise InputError(
            f"{folder}: the weights lack {weights.few(absent)}; weights and config.json belong to different models"
        )
    if head == "value":
        for stored in _TRL_VALUE_HEAD.keys() & tensors.keys():
            used.add(stored)
            path = _TRL_VALUE_HEAD[stored]
            found[path] = _fit(
                np.asarray(tensors[stored]).T, shapes[path], stored, "a value head has one output", folder
            )
    _name_unused(set(tensors) - used, head, folder)
    return found


def modern(name: str) -> str:
    """A tensor's current name in torch; the BERT of 2018 called a norm's parameters gamma and beta."""
    stem, _, leaf = name.rpartition("LayerNorm.")
    today = {"gamma": "weight", "beta": "bias"}.get(leaf)
    return name if today is None else f"{stem}LayerNorm.{today}"


def _fit(leaf: Stored, shape: Any, name: str, why: str, folder: Path) -> Stored:
    if leaf.shape != shape.shape:
        raise InputError(f"{folder}: tensor {name} has shape {leaf.shape}, expected {shape.shape}; {why}")
    return leaf


def _name_unused(unused: set[str], head: Head | None, folder: Path) -> None:
    """Refuse tensors of layers that the model lacks, and warn about unused heads."""
    expected = _LANGUAGE_HEADS if head == "reward" else ()
    plain = ("lm_head.weight", "lm_head/kernel")  # in a tied model
    firsts = {name: re.split("[./]", name)[0] for name in sorted(unused)}
    spare = [name for name, first in firsts.items() if first not in _HEADS]
    heads = [name for name, first in firsts.items() if first in _HEADS and first not in expected and name not in plain]
    if spare:
        raise InputError(
            f"{folder}: config.json does not describe {weights.few(spare)}; "
            "weights and config.json belong to different models"
        )
    if heads:
        purpose = f'head="{head}"' if head else "no head"
        _log.warning("%s: the model is loaded with %s and does not use %s", folder, purpose, weights.few(heads))


def _is_score_head(path: tuple[str, ...], family: Family) -> bool:
    """Whether a leaf is part of a reward head rather than of the pretrained network."""
    return path[0] == family.score_head or path[:2] == ("backbone", "pooler")


def _why_misfit(path: tuple[str, ...], family: Family) -> str:
    if path[0] == family.score_head:
        return "a reward model has one output: use a classifier with one label (num_labels=1)"
    return "weights and config.json belong to different models"
