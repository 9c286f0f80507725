"""Files of named tensors: safetensors and Flax msgpack, single or sharded. Loads data, never code."""

import json
import mmap
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
# Supported dtypes; the library has more, down to four bits.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_MAX_NAME_BYTES = 255  # limit of common file systems
_SEPARATORS: dict[Format, str] = {"safetensors": ".", "flax": "/"}


def read_weights(folder: Path) -> tuple[Tensors, Format]:
    """All tensors of a model folder, by their names in the file, and the format found.

    safetensors takes precedence over msgpack, a single file over shards. Tensors are as of `read_file`.

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
    """The tensors of one file: of safetensors as read-only arrays in its memory map, of msgpack in memory.

    Raises:
        InputError: the file is truncated or in another format.
    """
    with guarded.foreign_errors(f"{path}: not a complete {kind} file", "copy or download it again"):
        if kind == "safetensors":
            return _map_safetensors(path)
        tree = serialization.msgpack_restore(path.read_bytes())
        flat: dict[str, Any] = flatten_dict(tree, sep="/") if isinstance(tree, dict) else {}
    if not flat or not all(isinstance(leaf, np.ndarray) for leaf in flat.values()):
        raise InputError(f"{path}: not a flax file of named tensors; copy or download it again")
    return {str(name): leaf for name, leaf in flat.items()}


def _map_safetensors(path: Path) -> Tensors:
    """Like `safetensors.numpy.load_file`, which reads all and fails on float8."""
    with safetensors.safe_open(path, framework="numpy"):
        pass  # checks the header, and that the file has the bytes that it describes
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    unknown = [f"{name} ({spec['dtype']})" for name, spec in header.items() if spec["dtype"] not in _DTYPES]
    if unknown:
        raise InputError(f"{path}: unsupported tensor types: {few(unknown)}; use weights of {', '.join(_DTYPES)}")
    return {
        name: np.ndarray(spec["shape"], _DTYPES[spec["dtype"]], content, start + spec["data_offsets"][0])
        for name, spec in header.items()
    }


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

    def locate(self, path: tuple[str, ...]) -> tuple[str, str, Callable[[Any], Any]]:
        """For one of our leaves: its name in a file, the same without prefix, and its layout conversion, a view."""
        module, *rest = path
        leaf = rest[-1]
        if module == "lm_head" and not self._is_torch:
            name = f"lm_head/{'bias' if leaf == 'bias' else 'kernel'}"
            return name, name, _transpose if leaf != "bias" else _as_it_is
        parts = [piece for part in rest[:-1] for piece in _layer_number(part)]
        bare = self._separator.join([*parts, self._leaves.get(leaf, leaf)])
        if module != "backbone":  # heads: lm_head, score
            name = f"{module}{self._separator}{bare}"
            is_turned = leaf == "kernel" and self._is_torch
            return name, name, _transpose if is_turned else _as_it_is
        turn = _as_it_is if self._is_output_first or leaf != "weight" else _transpose
        return f"{self._prefix}{self._separator}{bare}", bare, turn


def _transpose(weight: Any) -> Any:
    """A matrix, or each of a stack of matrices, with its axes swapped; what is no matrix fits nowhere as it is."""
    return weight.swapaxes(-1, -2) if weight.ndim > 1 else weight


def _as_it_is(tensor: Any) -> Any:
    return tensor


def _layer_number(part: str) -> list[str]:
    """`layers_3` is two pieces, `layers` and `3`; `self_attn` and `ln_1` are one."""
    stem, _, number = part.rpartition("_")
    return [stem, number] if number.isdigit() and stem in ("layers", "layer", "h") else [part]


def few(names: list[str], most: int = 4) -> str:
    """The first names of a list, at most 200 characters each, and the number of others, for a message."""
    return ", ".join(name[:200] for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
