"""Model folders in Hugging Face's form, in and out."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import AutoConfig

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import weights
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.models.config import Head, ModelConfig, check_sizes
from jaxrl_lm.models.encoder import Encoder
from jaxrl_lm.models.families import Family, family_of
from jaxrl_lm.models.weights import Format, TensorLayout, Tensors
from jaxrl_lm.types import PyTree

RewardModel = CausalLM | Encoder
"""A model with `scores`: a decoder read at its last token, or an encoder."""

VALUE_HEAD_FILE = "value_head.safetensors"
REWARD_SCALE_FILE = "reward_scale.json"
# Buffers that older classes stored beside the weights.
_BUFFERS = re.compile(r"(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq|embeddings\.position_ids)$")
_HEADS = ("lm_head", "score", "v_head", "classifier", "cls")
_HUB_FILES = ("*.json", "*.safetensors", "*.msgpack", "*.jinja", "*.txt", "*.model")


@overload
def from_pretrained(
    folder_or_hub_id: str | Path,
    head: Literal["value"] | None = None,
    *,
    dtype: Any = ...,
    param_dtype: Any = ...,
    is_remat: bool = ...,
) -> tuple[CausalLM, PyTree]: ...


@overload
def from_pretrained(
    folder_or_hub_id: str | Path,
    head: Literal["reward"],
    *,
    dtype: Any = ...,
    param_dtype: Any = ...,
    is_remat: bool = ...,
    key: jax.Array | None = ...,
) -> tuple[RewardModel, PyTree]: ...


def from_pretrained(
    folder_or_hub_id: str | Path,
    head: Head | None = None,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    is_remat: bool = False,
    key: jax.Array | None = None,
) -> tuple[RewardModel, PyTree]:
    """Load a language model, or a reward model, from a folder or from the Hugging Face hub.

    Args:
        folder_or_hub_id: a folder with config.json and weights, or an id such as `HuggingFaceTB/SmolLM2-135M`.
        head: "value" (read from the folder where it was saved, else zeros) or "reward". An encoder (BERT) can only be
            loaded with "reward".
        dtype: of the activations.
        param_dtype: of the parameters, whatever the file holds.
        is_remat: recompute activations in the backward pass.
        key: draws a reward head, N(0, 1/sqrt(D + 1)) with bias 0, where the folder has none; None refuses such a
            folder, for what a random head says is no reward.

    Returns:
        the model and its parameters.

    Raises:
        InputError: config or weights are missing, damaged, unsupported, or do not fit each other; the folder has no
            score head and there is no key to draw one.
    """
    folder = resolve_folder(folder_or_hub_id)
    model = _build(folder, head, dtype, param_dtype, is_remat)
    tensors, kind = weights.read_weights(folder)
    if model.config.num_layers > len(tensors):  # seen before the layers are traced, which takes minutes for thousands
        raise InputError(
            f"{folder}: the weights lack layers: config.json has {model.config.num_layers}, the file {len(tensors)} "
            "tensors; weights and config.json are of different models"
        )
    with guarded.foreign_errors(f"{folder / 'config.json'}: no model can be built of it", "correct its sizes"):
        tree = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    shapes: dict[tuple[str, ...], Any] = flatten_dict(tree)
    found = _place(tensors, kind, model.family, shapes, folder)
    if head == "value":
        found |= _value_head(folder, shapes)
    missing = {path: shape for path, shape in shapes.items() if path not in found}
    if missing:
        found |= _fresh_head(missing, model, key, folder)
    params = {
        path: jnp.asarray(leaf, param_dtype if path[0] in ("backbone", "lm_head") else shapes[path].dtype)
        for path, leaf in found.items()
    }
    return model, unflatten_dict(params)


def save_pretrained(
    folder: str | Path,
    model: RewardModel,
    params: PyTree,
    *,
    format: Format = "safetensors",  # noqa: A002 the name that Hugging Face's users expect
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a folder that `from_pretrained`, and Hugging Face's own classes, load.

    Everything is written beside the folder first. A new folder then appears whole; in one that exists the old weights
    are replaced and other files, such as the tokenizer's, stay. A value head lies beside the weights in
    value_head.safetensors; a reward head is `score.weight` (BERT: `classifier.weight` and `.bias`), as
    `AutoModelForSequenceClassification` has it.

    Args:
        folder: made if it is not there.
        model: the module that `params` belong to.
        params: parameters; tensors are written in the dtype they have.
        format: "safetensors" or "flax" (`flax_model.msgpack`).
        max_shard_bytes: larger weights are split.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    layout = _layout(model.family, format)
    tensors: Tensors = {}
    for path, leaf in flat.items():
        if path[0] != "value_head":
            name, _, turn = layout.locate(path)
            tensors[name] = turn(leaf)
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
    """The folder itself, or where the hub's files were downloaded to.

    Raises:
        InputError: it is neither a folder nor a repository that the hub serves.
    """
    folder = Path(folder_or_hub_id).expanduser()
    with guarded.foreign_errors(f"model {str(folder_or_hub_id)[:100]!r} is no folder", "give one, or a hub id"):
        if folder.is_dir():
            return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder_or_hub_id), allow_patterns=list(_HUB_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"model {str(folder_or_hub_id)!r} is no folder here, and the hub did not serve it "
            f"({type(error).__name__}); give a folder with config.json and weights, or a hub id while online"
        ) from error


def has_score_head(folder: Path) -> bool:
    """Whether the folder's weights hold a reward model's head.

    Raises:
        InputError: config or weights are missing, damaged or unsupported.
    """
    tensors, kind = weights.read_weights(folder)
    family = family_of(read_config(folder)["model_type"])
    return _layout(family, kind).locate((family.score_head, "kernel"))[0] in tensors


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json with transformers' defaults filled in.

    Raises:
        InputError: it is missing, is no JSON, or has a `model_type` that no family reads.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: not found; a model folder holds config.json beside its weights")
    raw = guarded.read_object(path, remedy="copy or download it again")
    family_of(raw.get("model_type"))
    check_sizes(raw, path)
    with guarded.foreign_errors(f"{path}: not a configuration", "correct the field"):
        return AutoConfig.for_model(**raw).to_dict()


def _build(folder: Path, head: Head | None, dtype: Any, param_dtype: Any, is_remat: bool) -> RewardModel:
    raw = read_config(folder)
    family = family_of(raw["model_type"])
    if not family.is_causal and head != "reward":
        raise InputError(
            f"{folder}: model_type={raw['model_type']!r} is an encoder, which reads text and writes none; "
            "it can be a reward model, not a policy: give a decoder, such as gpt2 or llama"
        )
    with guarded.foreign_errors(f"{folder / 'config.json'}: a field is missing or unfit", "correct it"):
        config: ModelConfig = family.config_from_hf(raw)
    kind = CausalLM if family.is_causal else Encoder
    return kind(config, head=head, dtype=dtype, param_dtype=param_dtype, is_remat=is_remat)  # pyright: ignore


def _layout(family: Family, kind: Format) -> TensorLayout:
    is_torch = kind == "safetensors"
    return TensorLayout(
        kind,
        prefix=family.prefix,
        is_output_first=family.is_torch_output_first if is_torch else family.is_flax_output_first,
        flax_norm_scale=family.flax_norm_scale,
    )


def _place(
    tensors: Tensors, kind: Format, family: Family, shapes: dict[tuple[str, ...], Any], folder: Path
) -> dict[tuple[str, ...], np.ndarray]:
    """Each of our leaves from the file's tensors; heads that the file lacks are left out."""
    layout = _layout(family, kind)
    tensors = {_modern(name): tensor for name, tensor in tensors.items()}
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
        found[path] = turn(tensors[stored])
        if found[path].shape != shape.shape:
            raise InputError(
                f"{folder}: tensor {stored} gives {found[path].shape}, wanted is {shape.shape}; "
                + _why_misfit(path, family)
            )
    if absent:
        raise InputError(
            f"{folder}: the weights lack {weights.few(absent)}; weights and config.json are of different models"
        )
    spare = [name for name in tensors if name not in used and _is_backbone(name, family, kind)]
    if spare:
        raise InputError(
            f"{folder}: config.json has no place for {weights.few(spare)}; "
            "weights and config.json are of different models"
        )
    return found


def _is_backbone(name: str, family: Family, kind: Format) -> bool:
    separator = "." if kind == "safetensors" else "/"
    return name.split(separator)[0] not in _HEADS and not _BUFFERS.search(name.replace("/", "."))


def _is_score_head(path: tuple[str, ...], family: Family) -> bool:
    """Whether a leaf belongs to what a reward model has over the network that it started from."""
    return path[0] == family.score_head or path[:2] == ("backbone", "pooler")


def _why_misfit(path: tuple[str, ...], family: Family) -> str:
    if path[0] == family.score_head:
        return "a reward model has one output: take a classifier of one label (num_labels=1)"
    return "weights and config.json are of different models"


def _modern(name: str) -> str:
    """A tensor's name as torch's classes write it today; BERT's of 2018 called a norm's parameters gamma and beta."""
    stem, _, leaf = name.rpartition("LayerNorm.")
    today = {"gamma": "weight", "beta": "bias"}.get(leaf)
    return name if today is None else f"{stem}LayerNorm.{today}"


def _value_head(folder: Path, shapes: dict[tuple[str, ...], Any]) -> dict[tuple[str, ...], np.ndarray]:
    wanted = {path: shape for path, shape in shapes.items() if path[0] == "value_head"}
    file = folder / VALUE_HEAD_FILE
    if not file.is_file():
        return {path: np.zeros(shape.shape, shape.dtype) for path, shape in wanted.items()}
    tensors = weights.read_file(file, "safetensors")
    for path, shape in wanted.items():
        stored = tensors.get("/".join(path))
        if stored is None or stored.shape != shape.shape:
            raise InputError(f"{file}: {'/'.join(path)} must have shape {shape.shape}; save the model again")
    return {path: tensors["/".join(path)] for path in wanted}


def _fresh_head(
    missing: dict[tuple[str, ...], Any], model: RewardModel, key: jax.Array | None, folder: Path
) -> dict[tuple[str, ...], np.ndarray]:
    """Leaves that a reward head lacks: biases 0, the score N(0, 1/sqrt(D + 1)), a pooler as the model began."""
    if key is None:
        raise InputError(
            f"{folder}: the weights have no score head ({weights.few(['.'.join(path) for path in missing])}); "
            "name the folder of a reward model, such as the model/ of a run of `jaxrl-lm reward-model`"
        )
    config, leaves = model.config, {}
    for (path, shape), leaf_key in zip(missing.items(), jax.random.split(key, len(missing)), strict=True):
        is_score = path[0] == model.family.score_head
        std = 0.0 if path[-1] == "bias" else (config.model_size + 1) ** -0.5 if is_score else config.init_std
        leaves[path] = np.asarray(std * jax.random.normal(leaf_key, shape.shape))
    return leaves


def _write_config(folder: Path, model: RewardModel, dtype: np.dtype) -> None:
    config = model.config.hf_config()
    kind = "ForSequenceClassification" if model.head == "reward" else "ForCausalLM"
    config |= {"architectures": [model.family.class_prefix + kind], "dtype": dtype.name}
    if model.head == "reward":
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _replace_weights(folder: Path, staged: Path) -> None:
    """Move files over their namesakes, then delete weights of another form: readable weights stand at any time."""
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
