"""A language model and its tokenizer, as every trainer loads and saves them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl_lm import data, distributed, models
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.adapters import is_adapter, save_adapter
from jaxrl_lm.models.lora import add_adapters
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.models.pretrained import resolve_folder, tokenizer_folder
from jaxrl_lm.models.stored import Stack
from jaxrl_lm.training.settings import Dtype, Kernels, Remat
from jaxrl_lm.types import PyTree

_ADAPTER_STREAM = 0x10A  # of a run's seed, for the adapters' initial values


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A loaded model.

    Attributes:
        name: the folder or hub id it was loaded from.
        folder: the folder it was loaded from.
        model: the Flax module: a `CausalLM`, or an encoder as a reward model.
        params: its parameters.
        tokenizer: its Hugging Face tokenizer.
    """

    name: str
    folder: Path
    model: Any
    params: PyTree
    tokenizer: Any

    def with_adapters(self, lora: LoraConfig, seed: int) -> "LoadedModel":
        """The same with adapters of these settings; itself if their rank is 0.

        Raises:
            InputError: a target matches nothing, or the model is an adapter itself.
        """
        if not lora.rank:
            return self
        if is_adapter(self.folder):
            raise InputError(
                f"lora.rank={lora.rank}: model={self.name!r} is an adapter, and one on top of it would have no base "
                "that can be loaded; merge it first with jaxrl-lm merge --adapter FOLDER --out NEW, and train from NEW"
            )
        key = jax.random.fold_in(jax.random.key(seed), _ADAPTER_STREAM)
        model, params = add_adapters(self.model, self.params, lora, key)
        return replace(self, model=model, params=params)

    def save(self, folder: Path, params: PyTree) -> None:
        """Write a Hugging Face model folder with these parameters, and adapters also to a folder of their own."""
        save_model(folder, self.model, params)
        data.save_tokenizer(self.tokenizer, folder)
        self.save_adapter_of(folder, params)

    def save_adapter_of(self, folder: Path, params: PyTree) -> Path | None:
        """Write adapters, if the model has any, beside a model's folder: `adapter` beside `model`.

        Returns:
            Their folder.
        """
        if self.model.config.lora is None:
            return None
        beside = folder.with_name(folder.name.replace("model", "adapter"))
        base = str(Path(self.name).expanduser().absolute()) if Path(self.name).expanduser().is_dir() else self.name
        save_adapter(beside, self.model, params, base)
        return beside


def load_model(
    name: str | Path,
    head: Literal["value", "reward"] | None = None,
    *,
    dtype: Dtype = "float32",
    remat: Remat = "none",
    scan_layers: bool | None = False,
    attention: Kernels = "auto",
    key: jax.Array | None = None,
    tokenizer: Any = None,
) -> LoadedModel:
    """Load a model and its tokenizer; in a mesh, each process reads only the parts of its own devices.

    Args:
        name: a folder or a Hugging Face hub id.
        head: head to add to the language model.
        dtype: dtype of activations.
        remat: activations that the backward pass recomputes, as of `CausalLM`.
        scan_layers: stack the layers' parameters; None does so except on a CPU.
        attention: what computes attention without a cache.
        key: random key for the weights of a new head.
        tokenizer: tokenizer of the model whose tokens this one reads; None loads its own.

    Raises:
        InputError: the folder has no model, or no tokenizer that fits it; its layers cannot be stacked; or a mesh in
            use does not divide it.
    """
    folder = resolve_folder(name)
    model, stored = models.open_pretrained(folder, head, dtype=jnp.dtype(dtype), remat=remat, key=key)
    model = model.clone(config=replace(model.config, attention=attention))
    if is_scanned(model, scan_layers, name):
        model = model.clone(is_scanned=True)
        models.logical_axes(model)  # refuses layers that are not alike
        stored = models.stack_layers(stored, model.family.layers, Stack)
    check_fits(model)
    params = models.load_params(model, stored, distributed.current_mesh())
    if tokenizer is None:
        tokenizer = data.load_tokenizer(
            tokenizer_folder(folder), vocab_size=model.config.vocab_size, is_padding_read=head == "reward"
        )
    return LoadedModel(name=str(name), folder=folder, model=model, params=params, tokenizer=tokenizer)


def save_model(folder: Path, model: Any, params: PyTree) -> None:
    """Write config and weights; of several processes, all gather the parameters and one writes them."""
    params = distributed.on_host(params)
    if not distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        return
    if getattr(model, "is_scanned", False):
        model, params = model.clone(is_scanned=False), models.unstack_layers(params, model.family.layers)
    models.save_pretrained(folder, model, params)


def is_scanned(model: Any, scan_layers: bool | None, name: str | Path) -> bool:
    """Whether a setting asks for stacked layers; None only asks where a model has them, and they are alike.

    Raises:
        InputError: it asks for those of an encoder.
    """
    if scan_layers is None:
        return jax.default_backend() != "cpu" and model.family.is_causal and model.config.is_uniform
    if scan_layers and not model.family.is_causal:
        raise InputError(
            f"scan_layers=true: model {str(name)!r} is an encoder, whose layers cannot be stacked; leave the option out"
        )
    return scan_layers


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
