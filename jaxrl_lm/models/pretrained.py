"""Loading and saving of Hugging Face model folders."""

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import adapters, placement, quantization, weights
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.models.config import Head, ModelConfig, check_sizes
from jaxrl_lm.models.encoder import Encoder
from jaxrl_lm.models.families import family_of
from jaxrl_lm.models.lora import merge_adapters
from jaxrl_lm.models.params import load_params, param_shapes
from jaxrl_lm.models.stack import Remat
from jaxrl_lm.models.stored import Stored
from jaxrl_lm.models.weights import Format, Tensors
from jaxrl_lm.types import PyTree

RewardModel = CausalLM | Encoder
"""A model with `scores`: a decoder scored at its last token, or an encoder."""

VALUE_HEAD_FILE = "value_head.safetensors"
REWARD_SCALE_FILE = "reward_scale.json"
_HUB_FILES = ("*.json", "*.safetensors", "*.msgpack", "*.jinja", "*.txt", "*.model")


@overload
def from_pretrained(
    folder_or_hub_id: str | Path,
    head: Literal["value"] | None = None,
    *,
    dtype: Any = ...,
    param_dtype: Any = ...,
    remat: Remat = ...,
    base: str | Path | None = ...,
) -> tuple[CausalLM, PyTree]: ...


@overload
def from_pretrained(
    folder_or_hub_id: str | Path,
    head: Literal["reward"],
    *,
    dtype: Any = ...,
    param_dtype: Any = ...,
    remat: Remat = ...,
    base: str | Path | None = ...,
    key: jax.Array | None = ...,
) -> tuple[RewardModel, PyTree]: ...


def from_pretrained(
    folder_or_hub_id: str | Path,
    head: Head | None = None,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: Remat = "none",
    key: jax.Array | None = None,
    base: str | Path | None = None,
) -> tuple[RewardModel, PyTree]:
    """Load a language model or reward model from a folder or the Hugging Face hub, onto the default device.

    Args:
        folder_or_hub_id: a folder with config.json and weights, or an id such as `HuggingFaceTB/SmolLM2-135M`. It may
            also have an adapter in PEFT's format, which is merged into its base.
        head: "value" (loaded if saved by `save_pretrained` or TRL's `AutoModelForCausalLMWithValueHead`, otherwise
            zeros) or "reward". An encoder (BERT) requires "reward".
        dtype: dtype of the activations.
        param_dtype: dtype of the parameters, whatever the dtype of the file.
        remat: activations that the backward pass recomputes, as of `CausalLM`.
        key: initialises a missing reward head, N(0, 1/sqrt(D + 1)) with bias 0. With None a folder without one is
            refused, because the scores of a random head mean nothing.
        base: base of an adapter; None for the one that the adapter names.

    Returns:
        the model and its parameters.

    Raises:
        InputError: config or weights are missing, damaged, unsupported, or do not match; or the folder has no score
            head and no key is given.
    """
    how: Any = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat, "key": key, "base": base}
    model, stored = open_pretrained(folder_or_hub_id, head, **how)
    return model, load_params(model, stored)


def open_pretrained(
    folder_or_hub_id: str | Path,
    head: Head | None = None,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: Remat = "none",
    key: jax.Array | None = None,
    base: str | Path | None = None,
) -> tuple[RewardModel, PyTree]:
    """A model and its parameters as `Stored` tensors, for `load_params`; arguments and errors as of `from_pretrained`.

    Tensors of safetensors files stay there. In memory are only tensors that have to be computed, which are float8
    weights and those that an adapter changes, and all of a msgpack file.
    """
    folder, adapter = _resolve_adapter(resolve_folder(folder_or_hub_id), base)
    raw = read_config(folder)
    family = family_of(raw["model_type"])
    quantized = raw.pop("quantization_config", None)  # models are saved unquantised
    config = _model_config(folder, raw, head)
    read, kind = weights.read_weights(folder)
    read = {placement.modern(name): tensor for name, tensor in read.items()}
    read = quantization.dequantise(read, quantized, folder)
    tensors = family.packing.unpack(read, config) if kind == "safetensors" else read
    config, tensors = placement.resolve_tie(config, tensors, kind, family)
    if config.num_layers > len(tensors):  # check before tracing, which takes minutes for thousands of layers
        raise InputError(
            f"{folder}: the weights lack layers: config.json has {config.num_layers}, the file {len(tensors)} "
            "tensors; weights and config.json belong to different models"
        )
    build: Any = CausalLM if family.is_causal else Encoder
    model: RewardModel = build(config, head=head, dtype=dtype, param_dtype=param_dtype, remat=remat)
    with guarded.foreign_errors(f"{folder / 'config.json'}: cannot build a model from it", "correct its sizes"):
        shapes: placement.Shapes = flatten_dict(param_shapes(model))
    found = placement.place(tensors, kind, family, shapes, head, folder)
    if adapter is not None:
        found = adapters.merge_tensors(found, shapes, adapter, family)
    if head == "value":
        found |= _value_head(folder, shapes, found)
    missing = {path: shape for path, shape in shapes.items() if path not in found}
    if missing:
        found |= _fresh_head(missing, model, key, folder)
    return model, unflatten_dict(found)


def model_from_config(
    folder: Path, head: Head | None = None, *, dtype: Any = jnp.float32, remat: Remat = "none", is_scanned: bool = False
) -> RewardModel:
    """The module that a folder's config.json describes, which needs no weights; arguments as of `from_pretrained`.

    Raises:
        InputError: the configuration is missing, damaged or not supported.
    """
    config = _model_config(folder, raw := read_config(folder), head)
    if family_of(raw["model_type"]).is_causal:
        return CausalLM(config, head=head, dtype=dtype, remat=remat, is_scanned=is_scanned)
    return Encoder(config, dtype=dtype, remat=remat)


def save_pretrained(
    folder: str | Path,
    model: RewardModel,
    params: PyTree,
    *,
    format: Format = "safetensors",  # noqa: A002 the name that Hugging Face's users expect
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Save a folder that both `from_pretrained` and Hugging Face's classes can load.

    Files are written to a temporary folder first, so that a new folder appears complete. In an existing folder, weights
    are replaced and other files, such as the tokenizer's, are kept. A value head is saved as value_head.safetensors,
    with `value_head/kernel` `[D, 1]` and `value_head/bias` `[1]`. A reward head is saved with the weights, as in
    `AutoModelForSequenceClassification`: `score.weight` (BERT: `classifier.weight` and `.bias`). Adapters are merged,
    and quantised weights, such as float8, are saved dequantised.

    Args:
        folder: created if missing.
        model: the module of `params`.
        params: parameters; tensors keep their dtype.
        format: "safetensors" or "flax" (`flax_model.msgpack`).
        max_shard_bytes: larger weights are split.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    model, params = merge_adapters(model, params)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    layout = placement.layout_of(model.family, format)
    tensors: Tensors = {}
    for path, leaf in flat.items():
        if path[0] != "value_head":
            name, _, turn = layout.locate(path)
            tensors[name] = turn(leaf)
    if format == "safetensors":
        tensors = model.family.packing.pack(tensors, model.config)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
        staged = Path(staging) / folder.name
        staged.mkdir()
        weights.write_weights(staged, tensors, format, max_shard_bytes)
        if model.head == "value":
            head = {"/".join(path): leaf for path, leaf in flat.items() if path[0] == "value_head"}
            weights.write_file(staged / VALUE_HEAD_FILE, head, "safetensors")
        _write_config(staged, model, np.dtype(jax.tree.leaves(params)[0].dtype))
        if folder.exists():
            _replace_weights(folder, staged)
        else:
            staged.rename(folder)


def resolve_folder(folder_or_hub_id: str | Path) -> Path:
    """The folder itself, or the local download of a hub repository.

    Raises:
        InputError: it is neither a folder nor an available hub repository.
    """
    folder = Path(folder_or_hub_id).expanduser()
    with guarded.foreign_errors(f"model {str(folder_or_hub_id)[:100]!r} is not a folder", "give a folder or a hub id"):
        if folder.is_dir():
            return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder_or_hub_id), allow_patterns=list(_HUB_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"model {str(folder_or_hub_id)!r} is not a folder, and could not be downloaded from the hub "
            f"({type(error).__name__}); give a folder with config.json and weights, or a hub id while online"
        ) from error


def tokenizer_folder(folder: Path, base: str | Path | None = None) -> Path:
    """The folder with a model's tokenizer: of an adapter without one of its own, its base's.

    Raises:
        InputError: the adapter or its base cannot be read.
    """
    return folder if (folder / "tokenizer_config.json").is_file() else _resolve_adapter(folder, base)[0]


def _resolve_adapter(folder: Path, base: str | Path | None) -> tuple[Path, adapters.Adapter | None]:
    """The folder of the whole model, and the adapter to merge into it."""
    if not adapters.is_adapter(folder):
        return folder, None
    adapter = adapters.read_adapter(folder)
    name = base or adapter.base
    if not name:
        raise InputError(
            f"{folder / adapters.CONFIG_FILE}: base_model_name_or_path is missing; merge the adapter with "
            "jaxrl-lm merge --base FOLDER"
        )
    try:
        return resolve_folder(name), replace(adapter, base=str(name))
    except InputError as error:
        raise InputError(f"base of the adapter {str(folder)!r}: {error}") from error


def has_score_head(folder: Path) -> bool:
    """Whether the folder's weights contain a reward model's head.

    Raises:
        InputError: config or weights are missing, damaged or unsupported.
    """
    folder, adapter = _resolve_adapter(folder, None)
    if adapter is not None and adapter.is_classifier:
        return True
    family = family_of(read_config(folder)["model_type"])
    tensors, kind = weights.read_weights(folder)
    return placement.layout_of(family, kind).locate((family.score_head, "kernel"))[0] in tensors


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json with transformers' defaults filled in.

    Raises:
        InputError: it is missing, is not JSON, or has an unsupported `model_type`.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: not found; a model folder contains config.json and weights")
    raw = guarded.read_object(path, remedy="copy or download it again")
    family_of(raw.get("model_type"))
    if raw["model_type"] == "mistral" and "layer_types" in raw:
        raw["model_type"] = "ministral"  # as in transformers' AutoConfig, whose Mistral has one kind of layer
    quantization.check_config(raw.get("quantization_config"), path)
    if raw.get("per_layer_config"):
        raise InputError(f"{path}: per_layer_config is not supported; use a model whose layers are alike")
    check_sizes(raw, path)
    from transformers import AutoConfig  # here, since it takes seconds to load

    with guarded.foreign_errors(f"{path}: not a configuration", "correct the field"):
        return AutoConfig.for_model(**raw).to_dict()


def _model_config(folder: Path, raw: dict[str, Any], head: Head | None) -> ModelConfig:
    family = family_of(raw["model_type"])
    if not family.is_causal and head != "reward":
        raise InputError(
            f"{folder}: model_type={raw['model_type']!r} is an encoder, which cannot generate text; "
            "it can be a reward model, but not a policy: use a decoder, such as gpt2 or llama"
        )
    with guarded.foreign_errors(f"{folder / 'config.json'}: a field is missing or invalid", "correct it"):
        return family.config_from_hf(raw)


def _value_head(
    folder: Path, shapes: placement.Shapes, found: dict[tuple[str, ...], Stored]
) -> dict[tuple[str, ...], Stored]:
    """The value head saved by us or by TRL, otherwise zeros."""
    wanted = {path: shape for path, shape in shapes.items() if path[0] == "value_head"}
    file = folder / VALUE_HEAD_FILE
    if not file.is_file():
        return {path: found.get(path, np.zeros(shape.shape, shape.dtype)) for path, shape in wanted.items()}
    tensors = weights.read_file(file, "safetensors")
    for path, shape in wanted.items():
        stored = tensors.get("/".join(path))
        if stored is None or stored.shape != shape.shape:
            raise InputError(f"{file}: {'/'.join(path)} must have shape {shape.shape}; save the model again")
    return {path: tensors["/".join(path)] for path in wanted}


def _fresh_head(
    missing: dict[tuple[str, ...], Any], model: RewardModel, key: jax.Array | None, folder: Path
) -> dict[tuple[str, ...], Stored]:
    """Initial values of missing reward head leaves: biases 0, score N(0, 1/sqrt(D + 1)), pooler as in pretraining."""
    if key is None:
        raise InputError(
            f"{folder}: the weights have no score head ({weights.few(['.'.join(path) for path in missing])}); "
            "give the folder of a reward model, such as model/ in a run of `jaxrl-lm reward-model`"
        )
    config, leaves = model.config, {}
    for (path, shape), leaf_key in zip(missing.items(), jax.random.split(key, len(missing)), strict=True):
        is_score = path[0] == model.family.score_head
        std = 0.0 if path[-1] == "bias" else (config.model_size + 1) ** -0.5 if is_score else config.init_std
        leaves[path] = np.asarray(std * jax.random.normal(leaf_key, shape.shape))
    return leaves


def _write_config(folder: Path, model: RewardModel, dtype: np.dtype) -> None:
    config = model.config.hf_config()
    family = model.family
    architecture = f"{family.class_prefix}ForCausalLM"
    if model.head == "reward":
        architecture = f"{family.scorer_prefix or family.class_prefix}ForSequenceClassification"
    config |= {"architectures": [architecture], "dtype": dtype.name}
    if model.head == "reward":
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _replace_weights(folder: Path, staged: Path) -> None:
    """Replace files of the same name, then delete weights in other formats: readable weights exist at all times."""
    new = {file.name for file in staged.iterdir()}
    for file in staged.iterdir():
        os.replace(file, folder / file.name)
    patterns = [VALUE_HEAD_FILE, REWARD_SCALE_FILE]
    for name in weights.FILE_NAMES.values():
        stem, suffix = name.rsplit(".", 1)
        patterns += [name, f"{name}.index.json", f"{stem}-*-of-*.{suffix}"]
    for old in (file for pattern in patterns for file in folder.glob(pattern)):
        if old.name not in new:
            old.unlink()
