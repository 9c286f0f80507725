"""A language model and its tokenizer, as every trainer loads and saves them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl_lm import data, distributed, models
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.training.settings import Dtype, Remat
from jaxrl_lm.types import PyTree


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A loaded model.

    Attributes:
        folder: the folder it was loaded from.
        model: the Flax module: a `CausalLM`, or an encoder as a reward model.
        params: its parameters.
        tokenizer: its Hugging Face tokenizer.
    """

    folder: Path
    model: Any
    params: PyTree
    tokenizer: Any

    def save(self, folder: Path, params: PyTree) -> None:
        """Write a Hugging Face model folder with these parameters."""
        save_model(folder, self.model, params)
        data.save_tokenizer(self.tokenizer, folder)


def load_model(
    name: str | Path,
    head: Literal["value", "reward"] | None = None,
    *,
    dtype: Dtype = "float32",
    remat: Remat = "none",
    scan_layers: bool | None = False,
    key: jax.Array | None = None,
    tokenizer: Any = None,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        name: a folder or a Hugging Face hub id.
        head: head to add to the language model.
        dtype: dtype of activations.
        remat: activations that the backward pass recomputes, as of `CausalLM`.
        scan_layers: stack the layers' parameters; None does so except on a CPU.
        key: random key for the weights of a new head.
        tokenizer: tokenizer of the model whose tokens this one reads; None loads its own.

    Raises:
        InputError: the folder has no model, or no tokenizer that fits it.
    """
    folder = resolve_folder(name)
    how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "remat": remat, "key": key}
    model, params = models.from_pretrained(folder, head, **how)  # pyright: ignore[reportArgumentType]
    if is_scanned(model, scan_layers):
        model, params = model.clone(is_scanned=True), models.stack_layers(params, model.family.layers)
    check_fits(model)
    params = distributed.place_params(params, models.logical_axes(model))
    if tokenizer is None:
        tokenizer = data.load_tokenizer(folder, vocab_size=model.config.vocab_size, is_padding_read=head == "reward")
    return LoadedModel(folder=folder, model=model, params=params, tokenizer=tokenizer)


def save_model(folder: Path, model: Any, params: PyTree) -> None:
    """Write config and weights; of several processes, all gather the parameters and one writes them."""
    params = distributed.on_host(params)
    if not distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        return
    if getattr(model, "is_scanned", False):
        model, params = model.clone(is_scanned=False), models.unstack_layers(params, model.family.layers)
    models.save_pretrained(folder, model, params)


def is_scanned(model: Any, scan_layers: bool | None) -> bool:
    """Whether a setting asks for stacked layers, which encoders do not have; None only asks where layers are alike."""
    asked = jax.default_backend() != "cpu" and model.config.is_uniform if scan_layers is None else scan_layers
    return asked and model.family.is_causal


def check_fits(model: Any) -> None:
    """Refuse a mesh in use that does not divide the model.

    Raises:
        InputError: names the axis, the size, and what would divide it.
    """
    mesh = distributed.current_mesh()
    if mesh is None:
        return
    sizes = {f"{name} of the model's config.json": size for name, size in model.config.split_sizes.items()}
    distributed.check_divides(sizes, mesh)


def check_batch(sizes: dict[str, int]) -> None:
    """Refuse batches that the mesh in use does not divide.

    Args:
        sizes: rows by the name of the option.

    Raises:
        InputError: names the option, and what would do.
    """
    mesh = distributed.current_mesh()
    if mesh is None:
        return
    parts = distributed.num_batch_parts(mesh)
    for name, size in sizes.items():
        if size % parts:
            shown = " * ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in ("data", "fsdp") if mesh.shape[axis] > 1)
            raise InputError(
                f"{name}={size} is not a multiple of {shown}, over which batches are split; choose a multiple of "
                f"{parts}, or another mesh"
            )
