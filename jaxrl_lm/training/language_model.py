"""A language model and its tokenizer, as every trainer loads and saves them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl_lm import data, models
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
        models.save_pretrained(folder, self.model, params)
        data.save_tokenizer(self.tokenizer, folder)


def load_model(
    name: str | Path,
    head: Literal["value", "reward"] | None = None,
    *,
    dtype: Dtype = "float32",
    remat: Remat = "none",
    key: jax.Array | None = None,
    tokenizer: Any = None,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        name: a folder or a Hugging Face hub id.
        head: head to add to the language model.
        dtype: dtype of activations.
        remat: activations that the backward pass recomputes, as of `CausalLM`.
        key: random key for the weights of a new head.
        tokenizer: tokenizer of the model whose tokens this one reads; None loads its own.

    Raises:
        InputError: the folder has no model, or no tokenizer that fits it.
    """
    folder = resolve_folder(name)
    how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "remat": remat, "key": key}
    model, params = models.from_pretrained(folder, head, **how)  # pyright: ignore[reportArgumentType]
    if tokenizer is None:
        tokenizer = data.load_tokenizer(folder, vocab_size=model.config.vocab_size, is_padding_read=head == "reward")
    return LoadedModel(folder=folder, model=model, params=params, tokenizer=tokenizer)
