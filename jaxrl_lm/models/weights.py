"""Files of named tensors: safetensors and Flax msgpack, single or sharded. Loads data, never code."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import safetensors.numpy
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError

Format = Literal["safetensors", "flax"]
Tensors = dict[str, np.ndarray]

FILE_NAMES: dict[Format, str] = {"safetensors": "model.safetensors", "flax": "flax_model.msgpack"}
_FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
# Supported dtypes; the library has more, down to four bits.
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
_MAX_NAME_BYTES = 255  # limit of common file systems
_SEPARATORS: dict[Format, str] = {"safetensors": ".", "flax": "/"}


def read_weights(folder: Path) -> tuple[Tensors, Format]:
    """All tensors of a model folder, by their names in the file, and the format found.

    safetensors takes precedence over msgpack, a single file over shards.

    Raises:
        InputError: there are no weights, a shard is missing, or a file is damaged.
    """
    for kind, name in FILE_NAMES.items():
        if (folder / name).is_file():
            return read_file(folder / name, kind), kind
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, kind), kind
    wanted = ", ".join(f"{name} or {name}.index.json" for name in FILE_NAMES.values())
    raise InputError(
        f"{folder}: no weights found (expected {wanted}); convert torch's .bin files, which are not supported"
    )


def read_file(path: Path, kind: Format) -> Tensors:
    """The tensors of one file.

    Raises:
        InputError: the file is truncated or in another format.
    """
    with guarded.foreign_errors(f"{path}: not a complete {kind} file", "copy or download it again"):
        if kind == "safetensors":
            return _load_safetensors(path)
        tree = serialization.msgpack_restore(path.read_bytes())
        flat: dict[str, Any] = flatten_dict(tree, sep="/") if isinstance(tree, dict) else {}
    if not flat or not all(isinstance(leaf, np.ndarray) for leaf in flat.values()):
        raise InputError(f"{path}: not a flax file of named tensors; copy or download it again")
    return {str(name): leaf for name, leaf in flat.items()}


def _load_safetensors(path: Path) -> Tensors:
    """Like `safetensors.numpy.load_file`, which fails on float8."""
    with safetensors.safe_open(path, framework="numpy") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 no mapping
        unknown = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in _DTYPES and kind not in _FLOAT8]
        if unknown:
            raise InputError(f"{path}: unsupported tensor types: {few(unknown)}; use weights of {', '.join(_DTYPES)}")
        tensors = {name: file.get_tensor(name) for name, kind in kinds.items() if kind not in _FLOAT8}
    if len(tensors) < len(kinds):
        for name, spec in safetensors.deserialize(path.read_bytes()):
            if spec["dtype"] in _FLOAT8:
                flat = np.frombuffer(spec["data"], _FLOAT8[spec["dtype"]])
                tensors[name] = flat.reshape(spec["shape"])
    return tensors


def _read_shards(index: Path, kind: Format) -> Tensors:
    remedy = "copy or download it again"
    with guarded.foreign_errors(f"{index}: not an index of shards", remedy):
        weight_map = guarded.read_object(index, remedy=remedy)["weight_map"]
        shards = sorted({Path(shard).name for shard in weight_map.values()})
        unfit = [shard for shard in shards if not 0 < len(shard.encode()) <= _MAX_NAME_BYTES or "\0" in shard]
        if unfit:
            raise ValueError(f"{unfit[0][:60]!r} is not a file name")
    tensors: Tensors = {}
    for shard in shards:
        path = index.parent / shard
        if not path.is_file():
            raise InputError(f"{path}: this shard, listed in {index.name}, is missing; copy or download it")
        tensors |= read_file(path, kind)
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise InputError(f"{index}: the shards lack {few(absent)}; copy or download the folder again")
    return tensors


def write_weights(folder: Path, tensors: Mapping[str, np.ndarray], kind: Format, max_shard_bytes: int) -> None:
    """Write tensors to one file, or to shards with an index if they exceed `max_shard_bytes`."""
    name = FILE_NAMES[kind]
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_file(folder / name, tensors, kind)
        return
    stem, suffix = name.rsplit(".", 1)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        shard_name = f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}"
        write_file(folder / shard_name, shard, kind)
        weight_map |= dict.fromkeys(shard, shard_name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{name}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_file(path: Path, tensors: Mapping[str, np.ndarray], kind: Format) -> None:
    """Write one file of named tensors."""
    # safetensors writes raw memory: a transposed view would be scrambled.
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    if kind == "safetensors":
        path.touch()
        mode = path.stat().st_mode
        safetensors.numpy.save_file(whole, path, metadata={"format": "pt"})
        path.chmod(mode)  # the library creates files that only their owner can read
    else:
        path.write_bytes(serialization.msgpack_serialize(unflatten_dict(whole, sep="/")))


def _split(tensors: Mapping[str, np.ndarray], max_bytes: int) -> list[Tensors]:
    shards: list[Tensors] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


class TensorLayout:
    """Names and orientation of a model's tensors in one file format.

    Our path `layers_3/self_attn/q_proj/weight` is `model.layers.3.self_attn.q_proj.weight` in torch's and
    `model/layers/3/self_attn/q_proj/kernel` in Flax's files.
    """

    def __init__(self, kind: Format, *, prefix: str, is_output_first: bool, flax_norm_scale: str) -> None:
        self._separator = _SEPARATORS[kind]
        self._prefix = prefix
        self._is_output_first = is_output_first
        self._leaves = (
            {"kernel": "weight", "embedding": "weight", "scale": "weight"}
            if kind == "safetensors"
            else {"weight": "kernel", "scale": flax_norm_scale}
        )
        self._is_torch = kind == "safetensors"

    def locate(self, path: tuple[str, ...]) -> tuple[str, str, Callable[[np.ndarray], np.ndarray]]:
        """For one of our leaves: its name in a file, the same without prefix, and its layout conversion."""
        room, *rest = path
        leaf = rest[-1]
        if room == "lm_head" and not self._is_torch:
            name = f"lm_head/{'bias' if leaf == 'bias' else 'kernel'}"
            return name, name, np.transpose
        parts = [piece for part in rest[:-1] for piece in _layer_number(part)]
        bare = self._separator.join([*parts, self._leaves.get(leaf, leaf)])
        if room != "backbone":  # heads: lm_head, score
            name = f"{room}{self._separator}{bare}"
            is_turned = leaf == "kernel" and self._is_torch
            return name, name, np.transpose if is_turned else np.asarray
        turn = np.asarray if self._is_output_first or leaf != "weight" else _transpose
        return f"{self._prefix}{self._separator}{bare}", bare, turn


def _transpose(weight: np.ndarray) -> np.ndarray:
    """A matrix, or each of a stack of matrices, with its axes swapped."""
    return np.swapaxes(weight, -1, -2)


def _layer_number(part: str) -> list[str]:
    """`layers_3` is two pieces, `layers` and `3`; `self_attn` and `ln_1` are one."""
    stem, _, number = part.rpartition("_")
    return [stem, number] if number.isdigit() and stem in ("layers", "layer", "h") else [part]


def few(names: list[str], most: int = 4) -> str:
    """The first names of a list, at most 200 characters each, and the number of others, for a message."""
    return ", ".join(name[:200] for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
