"""Operations that generation needs, however its programs arrange it."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import distributed
from jaxrl_lm.core.flops import count_flops
from jaxrl_lm.models import CausalLM, param_shapes
from jaxrl_lm.models.causal_lm import encode, unembed
from jaxrl_lm.rollouts.generation import Generation
from jaxrl_lm.types import PyTree


def count_generation(model: CausalLM, generation: Generation, *, per_prompt: int = 1) -> None:
    """Add what these completions, which are on the host, needed to the work that is being counted."""
    if distributed.is_counting():
        mask = np.asarray(generation.response_mask)
        prompt_length = np.shape(generation.sequences)[1] - mask.shape[1]
        distributed.add_flops(generation_flops(model, mask, prompt_length, per_prompt=per_prompt))


def generation_flops(model: CausalLM, response_mask: np.ndarray, prompt_length: int, *, per_prompt: int = 1) -> float:
    """Operations of products for the prompts, and for each token after a completion's first one.

    Steps of rows that have ended are not counted, since decoding need not make them. The cache of a token has all
    columns of prompts and completions.

    Args:
        model: of the completions.
        response_mask: 1 at their tokens, `[B, T]`.
        prompt_length: P.
        per_prompt: completions of each prompt, which is read once.
    """
    batch, length = response_mask.shape
    # A scanned model of the same sizes is traced in the time of one layer.
    traced: Any = model.clone(is_scanned=model.config.is_uniform)
    prefill = _flops(traced, batch // per_prompt, prompt_length, prompt_length)
    step = _flops(traced, batch, 1, prompt_length + length)
    return prefill + (float(response_mask.sum()) - batch) * step / batch


@cache
def _flops(model: CausalLM, rows: int, num_tokens: int, num_slots: int) -> float:
    """Operations of reading `num_tokens` tokens in each row, and of the logits after the last."""

    def read(params: PyTree, ids: jax.Array) -> jax.Array:
        cache = model.config.init_cache(rows, num_slots, model.dtype, is_scanned=model.is_scanned)
        output = encode(model, params, ids, jnp.ones_like(ids), cache)
        return unembed(output.hidden_states[:, -1], model.unembedding(params))

    ids = jax.ShapeDtypeStruct((rows, num_tokens), jnp.int32)
    return count_flops(jax.jit(read).trace(param_shapes(model), ids).jaxpr)
