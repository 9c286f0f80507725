"""Tensors that a checkpoint stores in another form than we do: one per expert, fused, or under another name."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from jaxrl_lm.models.config import ModelConfig
from jaxrl_lm.models.stored import Stack, Stored
from jaxrl_lm.models.weights import Tensors

_EXPERT = re.compile(r"(.*\bmlp\.experts)\.(\d+)\.(\w+_proj\.weight)")
_EXPERT_STACK = re.compile(r"(.*\bmlp\.experts)\.(\w+_proj\.weight)")


@dataclass(frozen=True)
class Packing:
    """How a safetensors file differs from one with a tensor for each of our parameters.

    Attributes:
        unpack: from the file's tensors to those, without reading them; what does not fit stays as it is, and is refused
            with the others.
        pack: the reverse.
    """

    unpack: Callable[[Tensors, ModelConfig], Mapping[str, Stored]]
    pack: Callable[[Tensors, ModelConfig], Tensors]


def _stack_experts(tensors: Tensors, config: ModelConfig) -> dict[str, Stored]:
    """`experts.0.up_proj.weight` and its siblings `[F, D]` become `experts.up_proj.weight` `[E, F, D]`.

    Files that transformers 5 writes in its own form have `experts.gate_up_proj` `[E, 2 F, D]` and `experts.down_proj`.
    """
    del config
    result: dict[str, Stored] = {}
    groups: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            groups[f"{match[1]}.{match[3]}"][int(match[2])] = tensor
        elif name.endswith("mlp.experts.gate_up_proj") and tensor.ndim == 3:
            stem = name.removesuffix("gate_up_proj")
            half = tensor.shape[1] // 2
            result |= {f"{stem}gate_proj.weight": tensor[:, :half], f"{stem}up_proj.weight": tensor[:, half:]}
        elif name.endswith("mlp.experts.down_proj"):
            result[f"{name}.weight"] = tensor
        else:
            result[name] = tensor
    for name, group in groups.items():
        if sorted(group) == list(range(len(group))) and len({tensor.shape for tensor in group.values()}) == 1:
            result[name] = Stack([group[number] for number in range(len(group))])
        else:
            stem, _, leaf = name.partition(".experts.")
            result |= {f"{stem}.experts.{number}.{leaf}": tensor for number, tensor in group.items()}
    return result


def _unstack_experts(tensors: Tensors, config: ModelConfig) -> Tensors:
    del config
    result: Tensors = {}
    for name, tensor in tensors.items():
        if match := _EXPERT_STACK.fullmatch(name):
            result |= {f"{match[1]}.{number}.{match[2]}": expert for number, expert in enumerate(tensor)}
        else:
            result[name] = tensor
    return result


def _fused_sizes(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Rows of each part of Phi-3's fused weights."""
    keys = config.num_kv_heads * config.head_size
    return {
        "self_attn.qkv_proj.weight": {
            "self_attn.q_proj.weight": config.num_heads * config.head_size,
            "self_attn.k_proj.weight": keys,
            "self_attn.v_proj.weight": keys,
        },
        "mlp.gate_up_proj.weight": {"mlp.gate_proj.weight": config.mlp_size, "mlp.up_proj.weight": config.mlp_size},
    }


def _split_fused(tensors: Tensors, config: ModelConfig) -> dict[str, Stored]:
    """Phi-3's `qkv_proj` and `gate_up_proj` become a tensor for each projection, which can be split over devices."""
    result: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        for fused, parts in _fused_sizes(config).items():
            if name.endswith(fused) and tensor.ndim == 2 and len(tensor) == sum(parts.values()):
                pieces = np.split(tensor, list(accumulate(parts.values()))[:-1])
                stem = name.removesuffix(fused)
                result |= {stem + part: piece for part, piece in zip(parts, pieces, strict=True)}
                break
        else:
            result[name] = tensor
    return result


def _fuse(tensors: Tensors, config: ModelConfig) -> Tensors:
    result = dict(tensors)
    for fused, parts in _fused_sizes(config).items():
        first = next(iter(parts))
        for stem in [name.removesuffix(first) for name in tensors if name.endswith(first)]:
            result[stem + fused] = np.concatenate([result.pop(stem + part) for part in parts])
    return result


def _renamed(old: str, new: str) -> Callable[[Tensors, ModelConfig], Tensors]:
    def rename(tensors: Tensors, config: ModelConfig) -> Tensors:
        del config
        return {new if name == old else name: tensor for name, tensor in tensors.items()}

    return rename


AS_IS = Packing(lambda tensors, _: tensors, lambda tensors, _: tensors)
EXPERTS = Packing(_stack_experts, _unstack_experts)
FUSED = Packing(_split_fused, _fuse)
EMBED_OUT = Packing(_renamed("embed_out.weight", "lm_head.weight"), _renamed("lm_head.weight", "embed_out.weight"))
