"""Which tensor of a checkpoint fills which parameter, as transformers' classes decide it."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import weights
from jaxrl_lm.models.config import Head, ModelConfig
from jaxrl_lm.models.families import Family
from jaxrl_lm.models.quantization import check_numbers
from jaxrl_lm.models.weights import Format, TensorLayout, Tensors

_log = logging.getLogger(__name__)

Shapes = dict[tuple[str, ...], Any]

# Buffers that older classes stored beside the weights; transformers passes over them too.
_BUFFERS = re.compile(r"(^|\.)(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq|position_ids)$")
_HEADS = ("lm_head", "score", "v_head", "classifier", "cls")
_LANGUAGE_HEADS = ("lm_head", "cls")  # a reward model is expected to start from a language model
# TRL's `AutoModelForCausalLMWithValueHead` stores its head among the weights.
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


def resolve_tie(config: ModelConfig, tensors: Tensors, kind: Format, family: Family) -> tuple[ModelConfig, Tensors]:
    """Configuration and tensors of a decoder whose config.json ties embedding and unembedding.

    As in transformers, a file that stores both with different values is not tied, whatever config.json says, and one
    that stores the unembedding alone gives it to both.

    Args:
        config: of the model.
        tensors: by the names of torch's classes today.
        kind: format of the file.
        family: of the model.
    """
    layout = layout_of(family, kind)
    head_name, _, turn = layout.locate(("lm_head", "embedding"))
    if not (family.is_causal and config.is_tied and head_name in tensors):
        return config, tensors
    names = layout.locate(("backbone", family.embedding, "embedding"))[:2]
    stored = next((name for name in names if name in tensors), None)
    unembedding = turn(tensors[head_name])
    if stored is None:
        return config, tensors | {names[0]: unembedding}
    if np.array_equal(tensors[stored], unembedding):
        return config, tensors
    _log.warning(
        "config.json says tie_word_embeddings=true, but %s and %s differ: both are used, untied, as in transformers",
        stored,
        head_name,
    )
    hf_json = json.dumps(config.hf_config() | {"tie_word_embeddings": False}, sort_keys=True)
    return replace(config, is_tied=False, hf_json=hf_json), tensors


def place(
    tensors: Tensors, kind: Format, family: Family, shapes: Shapes, head: Head | None, folder: Path
) -> dict[tuple[str, ...], np.ndarray]:
    """Each of our leaves from the file's tensors; heads that the file lacks are left out.

    Args:
        tensors: by the names of torch's classes today.
        kind: format of the file.
        family: of the model.
        shapes: of the parameters.
        head: of the model.
        folder: for messages.

    Raises:
        InputError: tensors are missing, have another shape, hold integers, or are of layers that the model lacks.
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
            f"{folder}: the weights lack {weights.few(absent)}; weights and config.json are of different models"
        )
    if head == "value":
        for stored in _TRL_VALUE_HEAD.keys() & tensors.keys():
            used.add(stored)
            path = _TRL_VALUE_HEAD[stored]
            found[path] = _fit(tensors[stored].T, shapes[path], stored, "a value head has one output", folder)
    _name_unused(set(tensors) - used, head, folder)
    return found


def modern(name: str) -> str:
    """A tensor's name as torch's classes write it today; BERT's of 2018 called a norm's parameters gamma and beta."""
    stem, _, leaf = name.rpartition("LayerNorm.")
    today = {"gamma": "weight", "beta": "bias"}.get(leaf)
    return name if today is None else f"{stem}LayerNorm.{today}"


def _fit(leaf: np.ndarray, shape: Any, name: str, why: str, folder: Path) -> np.ndarray:
    if leaf.shape != shape.shape:
        raise InputError(f"{folder}: tensor {name} gives {leaf.shape}, wanted is {shape.shape}; {why}")
    return leaf


def _name_unused(unused: set[str], head: Head | None, folder: Path) -> None:
    """Refuse tensors of layers that the model lacks, and warn of heads that it has no use for."""
    expected = _LANGUAGE_HEADS if head == "reward" else ()
    plain = ("lm_head.weight", "lm_head/kernel")  # of a tied model
    firsts = {name: re.split("[./]", name)[0] for name in sorted(unused)}
    spare = [name for name, first in firsts.items() if first not in _HEADS]
    heads = [name for name, first in firsts.items() if first in _HEADS and first not in expected and name not in plain]
    if spare:
        raise InputError(
            f"{folder}: config.json has no place for {weights.few(spare)}; "
            "weights and config.json are of different models"
        )
    if heads:
        purpose = f'head="{head}"' if head else "no head"
        _log.warning("%s: the model is loaded with %s and does not use %s", folder, purpose, weights.few(heads))


def _is_score_head(path: tuple[str, ...], family: Family) -> bool:
    """Whether a leaf belongs to what a reward model has over the network that it started from."""
    return path[0] == family.score_head or path[:2] == ("backbone", "pooler")


def _why_misfit(path: tuple[str, ...], family: Family) -> str:
    if path[0] == family.score_head:
        return "a reward model has one output: take a classifier of one label (num_labels=1)"
    return "weights and config.json are of different models"
