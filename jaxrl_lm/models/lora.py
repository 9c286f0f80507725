"""Low-rank adapters of a model: adding them, and merging them into its weights."""

from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import low_bits
from jaxrl_lm.models.causal_lm import CausalLM
from jaxrl_lm.models.encoder import Encoder
from jaxrl_lm.models.lora_config import ALL_LINEAR, LoraConfig, Quantization
from jaxrl_lm.models.params import param_shapes
from jaxrl_lm.models.partition import ADAPTER
from jaxrl_lm.types import PyTree

Model = TypeVar("Model", CausalLM, Encoder, CausalLM | Encoder)
Path = tuple[str, ...]


def with_lora(model: Model, lora: LoraConfig | None) -> Model:
    """The module whose parameters have adapters of these settings, or none."""
    return model.clone(config=replace(model.config, lora=lora))


def add_adapters(model: Model, params: PyTree, lora: LoraConfig, key: jax.Array) -> tuple[Model, PyTree]:
    """Add adapters whose product is 0 beside the targets, and quantise the projections if asked to.

    Args:
        model: a model without adapters.
        params: its parameters, of an unrolled or a scanned stack. Arrays that do not change are shared.
        lora: settings; the rank is above 0.
        key: random key of the adapters' A, U(-1/sqrt(D), 1/sqrt(D)).

    Raises:
        InputError: a target matches no projection.
    """
    check_targets(model, lora)
    adapted = with_lora(model, lora)
    found, shapes = _leaves(params), _leaves(param_shapes(adapted))
    for number, path in enumerate(path[:-1] for path in shapes if path[-1] == "lora_a"):
        shape_a, shape_b = (shapes[(*path, name)].shape for name in ADAPTER)
        uniform = jax.random.uniform(jax.random.fold_in(key, number), shape_a, minval=-1.0)
        found |= {(*path, "lora_a"): uniform / shape_a[-1] ** 0.5, (*path, "lora_b"): jnp.zeros(shape_b)}
    params = unflatten_dict(found)
    return adapted, params if lora.quantize == "none" else quantise_projections(model, params, lora.quantize)


def quantise_projections(model: CausalLM | Encoder, params: PyTree, kind: Quantization) -> PyTree:
    """The parameters with the weights of the blocks' projections in few bits (`low_bits`).

    Args:
        model: of the parameters, with or without adapters.
        params: of an unrolled or a scanned stack, as the model; weights that have few bits already stay as they are.
        kind: "int8" or "nf4".
    """
    found = _leaves(params)
    for path in adapted_projections(with_lora(model, LoraConfig(rank=1))):
        if (*path, "weight") in found:
            leaves = low_bits.quantise(kind, found.pop((*path, "weight")))
            found |= {(*path, name): leaf for name, leaf in leaves.items()}
    return unflatten_dict(found)


def check_targets(model: CausalLM | Encoder, lora: LoraConfig) -> None:
    """Check that each target is the name of a projection.

    Raises:
        InputError: one is not; names those that there are.
    """
    projections = adapted_projections(with_lora(model, replace(lora, targets=(ALL_LINEAR,))))
    matched = {target for path in projections for target in lora.matched_by(path)}
    unmatched = [target for target in lora.targets if target not in matched]
    if unmatched:
        names = sorted({path[-1] for path in projections})
        raise InputError(
            f"lora.targets: {', '.join(map(repr, unmatched))} matches no projection of this model; it has "
            f"{', '.join(names)}, or give {ALL_LINEAR}"
        )


def adapted_projections(model: CausalLM | Encoder) -> list[Path]:
    """Paths of the projections that have an adapter."""
    return [path[:-1] for path in _leaves(param_shapes(model)) if path[-1] == "lora_a"]


def merge_adapters(model: Model, params: PyTree) -> tuple[Model, PyTree]:
    """The model without adapters: W + B A * alpha / rank in float32, with W dequantised, as NumPy arrays.

    Parameters without adapters are returned as they are.
    """
    lora = model.config.lora
    if lora is None:
        return model, params
    projections: dict[Path, dict[str, Any]] = {}
    found: dict[Path, Any] = {}
    for path, leaf in _leaves(params).items():
        if path[-1].startswith("weight") or path[-1] in ADAPTER:
            projections.setdefault(path[:-1], {})[path[-1]] = leaf
        else:
            found[path] = leaf
    shapes = _leaves(param_shapes(with_lora(model, None)))
    for path, leaves in projections.items():
        size = shapes[(*path, "weight")].shape[-1]
        found[(*path, "weight")] = np.asarray(_merged(leaves, size, lora.scale))
    return with_lora(model, None), unflatten_dict(found)


def _leaves(params: PyTree) -> dict[Path, Any]:
    return flatten_dict(params)  # pyright: ignore[reportReturnType]


def _merged(leaves: dict[str, Any], size: int, scale: float) -> Any:
    weight = leaves["weight"] if "weight" in leaves else low_bits.dequantise(leaves, size)
    if "lora_a" not in leaves:
        return weight
    with jax.default_matmul_precision("highest"):
        update = jnp.matmul(leaves["lora_b"], leaves["lora_a"]) * scale
    return (weight.astype(jnp.float32) + update).astype(weight.dtype)
