"""Folders of adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import placement, weights
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.models.encoder import Encoder
from jaxrl_lm.models.families import Family
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.models.partition import HEADS
from jaxrl_lm.models.quantization import check_numbers
from jaxrl_lm.models.stack import unstack_layers
from jaxrl_lm.models.stored import Stored
from jaxrl_lm.models.weights import TensorLayout, Tensors
from jaxrl_lm.types import PyTree

_log = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_REMEDY = "copy or download it again"
# Options that change no weight, or only through the tensors in the file; with a value, any other is refused.
_UNDERSTOOD = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path"),
    *("r", "lora_alpha", "use_rslora", "fan_in_fan_out", "inference_mode", "lora_dropout", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("init_lora_weights", "eva_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
_NOTHING = ("none", "main")  # values of bias and revision
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # the others, such as pissa, change the base as well


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that was read.

    Attributes:
        folder: where it is.
        base: name of its base, a folder or hub id; empty if the file does not have it.
        rank: rows of A.
        scale: what B A is multiplied by.
        is_classifier: whether it was trained as a reward model.
        tensors: its tensors by the names in the base's file, such as `model.layers.0.mlp.up_proj.lora_A.weight`.
    """

    folder: Path
    base: str
    rank: int
    scale: float
    is_classifier: bool
    tensors: Tensors


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter rather than a whole model."""
    return (folder / CONFIG_FILE).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter.

    Raises:
        InputError: a file is missing or damaged, or has another method than LoRA, options of it that are not
            supported, or quantised tensors.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{path}: not found; a folder of an adapter contains {CONFIG_FILE} and {WEIGHTS_FILE}")
    found = guarded.read_object(path, remedy=_REMEDY)
    _check_method(found, path)
    with guarded.foreign_errors(f"{path}: not a configuration of LoRA", _REMEDY):
        rank, alpha = found["r"], found["lora_alpha"]
        if not (type(rank) is int and rank > 0 and type(alpha) in (int, float) and alpha > 0):
            raise ValueError(f"r={rank!r:.60} and lora_alpha={alpha!r:.60} must be positive numbers")
        lora = LoraConfig(rank=rank, alpha=float(alpha), rslora=bool(found.get("use_rslora")))
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise InputError(f"{file}: not found; save the adapter with PEFT's save_pretrained, as safetensors")
    tensors = weights.read_file(file, "safetensors")
    check_numbers(tensors, folder)
    return Adapter(
        folder=folder,
        base=str(found.get("base_model_name_or_path") or ""),
        rank=lora.rank,
        scale=lora.scale,
        is_classifier=found.get("task_type") == "SEQ_CLS",
        # PEFT may save the base's embeddings as well, inside the layer that it put around them.
        tensors={name.removeprefix(_PREFIX).replace(".base_layer.", "."): leaf for name, leaf in tensors.items()},
    )


def _check_method(found: dict[str, Any], path: Path) -> None:
    remedy = "merge it into its base with PEFT's merge_and_unload, and save the whole model"
    if found.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type={found.get('peft_type')!r:.60} is not supported, only LORA is; {remedy}")
    options = {name: value for name, value in found.items() if name not in _UNDERSTOOD and value not in _NOTHING}
    wrong = [f"{name}={value!r:.60}" for name, value in options.items() if value]
    if found.get("init_lora_weights", True) not in _PLAIN_STARTS:
        wrong.append(f"init_lora_weights={found['init_lora_weights']!r:.60}")
    if wrong:
        raise InputError(f"{path}: {weights.few(wrong)} is not supported in an adapter; {remedy}")


def merge_tensors(
    found: dict[tuple[str, ...], Stored], shapes: placement.Shapes, adapter: Adapter, family: Family
) -> dict[tuple[str, ...], Stored]:
    """The base's leaves with the adapter merged into them: W + scale * B A, in memory, and whole tensors replaced.

    Args:
        found: leaves of the base.
        shapes: shapes of all parameters, of which a head may be missing in `found`.
        adapter: what to merge.
        family: the base's family.

    Raises:
        InputError: the adapter has a tensor that the base has no place for, or of another shape.
    """
    layout, spare, result = placement.layout_of(family, "safetensors"), dict(adapter.tensors), dict(found)
    for path, shape in shapes.items():
        name, bare, turn = _locate(layout, path)
        for stored in dict.fromkeys((name, bare)):
            if stored in spare:  # trained as a whole (PEFT's modules_to_save)
                leaf = turn(spare.pop(stored))
                _check_shape(stored, leaf.shape, shape.shape, adapter)
                result[path] = leaf
            stem = stored.removesuffix(".weight")
            names = [f"{stem}.lora_{side}.weight" for side in "AB"]
            is_matrix = path[-1] == "weight" or path == ("lm_head", "embedding")
            if is_matrix and not spare.keys().isdisjoint(names):
                pair = [(each, spare.pop(each, None)) for each in names]
                result[path] = np.asarray(result[path]) + _update(pair, shape.shape, adapter)
    lost = [name for name in spare if name.split(".")[0] not in HEADS]
    if lost:
        raise InputError(
            f"{adapter.folder}: the base {_base_name(adapter)} has no place for {weights.few(lost)}; give the base "
            "that the adapter was trained on"
        )
    if spare:
        _log.warning("%s: the model is loaded without a head and does not use %s", adapter.folder, ", ".join(spare))
    return result


def _locate(layout: TensorLayout, path: tuple[str, ...]) -> tuple[str, str, Any]:
    if path[0] == "value_head":  # no tensor of Hugging Face's classes
        return "/".join(path), "/".join(path), np.asarray
    return layout.locate(path)


def _update(pair: list[tuple[str, Any]], shape: tuple[int, ...], adapter: Adapter) -> np.ndarray:
    """scale * B A, float32."""
    for (name, tensor), wanted in zip(pair, ((adapter.rank, shape[1]), (shape[0], adapter.rank)), strict=True):
        if tensor is None:
            raise InputError(f"{adapter.folder / WEIGHTS_FILE}: {name} is missing; {_REMEDY}")
        _check_shape(name, tensor.shape, wanted, adapter)
    a, b = (np.asarray(tensor, np.float32) for _, tensor in pair)
    return b @ a * np.float32(adapter.scale)


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], adapter: Adapter) -> None:
    if found != expected:
        raise InputError(
            f"{adapter.folder}: tensor {name} has shape {found}, expected {expected} for the base "
            f"{_base_name(adapter)}; give the base that the adapter was trained on"
        )


def _base_name(adapter: Adapter) -> str:
    return repr(adapter.base[:200])


def save_adapter(folder: Path, model: CausalLM | Encoder, params: PyTree, base: str) -> None:
    """Save the adapters of a model, and the head of a reward model, so that PEFT can load them.

    Args:
        folder: created if missing.
        model: a model with adapters.
        params: its parameters.
        base: folder or hub id of the model that the adapters were added to.
    """
    lora, layout = model.config.lora, placement.layout_of(model.family, "safetensors")
    assert lora is not None
    if getattr(model, "is_scanned", False):
        params = unstack_layers(params, model.family.layers)
    tensors: Tensors = {}
    targets, whole = [], set()
    for path, leaf in flatten_dict(params).items():
        if path[-1] in ("lora_a", "lora_b"):
            stem = layout.locate((*path[:-1], "weight"))[0].removesuffix(".weight")
            targets += [stem] if path[-1] == "lora_a" else []
            tensors[f"{_PREFIX}{stem}.lora_{path[-1][-1].upper()}.weight"] = np.asarray(leaf)
        elif path[0] == model.family.score_head or path[:2] == ("backbone", "pooler"):
            name, _, turn = layout.locate(path)
            tensors[_PREFIX + name] = turn(np.asarray(leaf))
            whole.add(path[0] if path[0] != "backbone" else path[1])
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if model.head == "reward" else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "use_rslora": lora.rslora,
        "target_modules": targets,
        "modules_to_save": sorted(whole) or None,
        "fan_in_fan_out": not model.family.is_torch_output_first,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights.write_file(folder / WEIGHTS_FILE, tensors, "safetensors")
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
