"""A decoder with its unembedding and an optional value or reward head."""

from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from jaxrl_lm.core.records import record
from jaxrl_lm.core.unembedding import Unembedding
from jaxrl_lm.distributed.sharding import gather
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import attention, inputs
from jaxrl_lm.models.attention import KVCache
from jaxrl_lm.models.config import Head, ModelConfig
from jaxrl_lm.models.families import Family, family_of
from jaxrl_lm.models.linear import product, score_head
from jaxrl_lm.models.stack import Remat
from jaxrl_lm.types import PyTree


@record
class CausalLMOutput:
    """The outputs of a forward pass over `[B, T]` tokens.

    Attributes:
        hidden_states: after the last norm, `[B, T, D]`.
        logits: `[B, T, V]` float32; None from `encode` and for a reward model.
        values: `[B, T]` float32, the head's scalar at each token, the value of the state after it; None without a
            head. For a reward model this initialises a value network.
        scores: `[B]` float32, at each row's last token; None without a reward head.
        cache: the key/value cache after these tokens; None if none was given.
    """

    hidden_states: PyTree
    logits: PyTree = None
    values: PyTree = None
    scores: PyTree = None
    cache: KVCache | None = None


class CausalLM(nn.Module):
    """A causal language model of any family in `FAMILIES`.

    Attributes:
        config: the sizes, from the checkpoint.
        head: "value" adds a scalar per token; "reward" replaces the logits by a scalar per row.
        dtype: dtype of the activations; norms, softmax, logits, values and scores are always float32.
        param_dtype: dtype of the parameters.
        remat: activations that the backward pass recomputes: "none", all but the products of weights ("dots"), or all
            of a block ("full": the least memory, a third more compute).
        is_scanned: run all blocks as one that is scanned over parameters `[L, ...]` (`stack_layers`): compiling takes
            as long as for one layer.
    """

    config: ModelConfig
    head: Head | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    is_scanned: bool = False

    @property
    def family(self) -> Family:
        """This model's entry in `FAMILIES`."""
        return family_of(self.config.hf_config()["model_type"])

    def setup(self) -> None:
        cfg = self.config
        self.backbone = self.family.backbone(cfg, self.dtype, self.param_dtype, self.remat, self.is_scanned)
        if self.head != "reward" and not (cfg.is_tied and not cfg.has_unembedding_bias):
            self.lm_head = LMHead(cfg, self.param_dtype)
        if self.head == "value":
            self.value_head = score_head(nn.initializers.zeros)
        elif self.head == "reward":
            init = nn.initializers.normal((cfg.model_size + 1) ** -0.5)
            self.score = score_head(init, use_bias=False)

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        cache: KVCache | None = None,
        segment_ids: ArrayLike | None = None,
    ) -> CausalLMOutput:
        """Run the model.

        Values are checked outside `jit`; inside, only shapes and dtypes.

        Args:
            input_ids: int `[B, T]`, token ids; ids where the mask is 0 are never read, so a pad id outside the
                vocabulary is allowed.
            attention_mask: 1 for a token, 0 for padding on either side, `[B, T]`; all ones if None.
            position_ids: int `[B, T]`; counted from the first token of each row (or segment) if None.
                cache: keys and values of earlier tokens; pass the returned cache to the next call.
            segment_ids: for packed rows, the sequence of each token: int `[B, T]`, above 0, different for adjacent
            sequences, 0 for padding. Tokens do not attend to other sequences. Replaces `attention_mask`; not with
                a cache.

        Raises:
            InputError: a shape does not match, an id is outside the vocabulary, a row is longer than the model's
                context, the cache has too few free slots, or `segment_ids` are given with a mask or a cache.
        """
        output = self.encode(input_ids, attention_mask, position_ids, cache, segment_ids)
        if self.head == "reward":
            return output
        cfg = self.config
        matrix = self._embedding() if cfg.is_tied else self.lm_head.embedding
        bias = self.lm_head.bias if cfg.has_unembedding_bias else None
        unembedding = Unembedding(matrix=matrix, bias=bias, softcap=cfg.logit_softcap)
        return replace(output, logits=unembed(output.hidden_states, unembedding))

    def encode(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        cache: KVCache | None = None,
        segment_ids: ArrayLike | None = None,
    ) -> CausalLMOutput:
        """Run the model without computing logits; arguments as for `__call__`."""
        if segment_ids is not None and not (attention_mask is None and cache is None):
            raise InputError(
                "segment_ids: not allowed with an attention_mask or a cache; use 0 in segment_ids for padding"
            )
        inputs.check_inputs(self.config, input_ids, attention_mask, position_ids, cache, segment_ids)
        ids = jnp.asarray(input_ids, jnp.int32)
        given = attention_mask if segment_ids is None else segment_ids
        mask = jnp.ones_like(ids) if given is None else jnp.asarray(given, jnp.int32)
        if position_ids is not None:
            positions = jnp.asarray(position_ids, jnp.int32)
        elif segment_ids is not None:
            positions = attention.segment_positions(mask)
        else:
            positions = attention.token_positions(mask, cache)
        hidden_states, cache = self.backbone(jnp.where(mask > 0, ids, 0), mask, positions, cache)
        values = scores = None
        if self.head is not None:
            head = self.value_head if self.head == "value" else self.score
            values = head(hidden_states)[..., 0]
            scores = _last(values, mask) if self.head == "reward" else None
        return CausalLMOutput(hidden_states=hidden_states, values=values, scores=scores, cache=cache)

    def unembedding(self, params: PyTree) -> Unembedding:
        """The unembedding in the parameters, its matrix in the dtype of the activations."""
        head = params.get("lm_head", {})
        part = params["backbone"][self.family.embedding] if self.config.is_tied else head
        matrix = gather(part["embedding"].astype(self.dtype), "vocab", "embed")
        return Unembedding(matrix=matrix, bias=head.get("bias"), softcap=self.config.logit_softcap)

    def _embedding(self) -> jax.Array:
        return getattr(self.backbone, self.family.embedding).embedding


class LMHead(nn.Module):
    """Parameters of the unembedding: a matrix `[V, D]` if it is not the embedding, and a bias `[V]` if there is one."""

    config: ModelConfig
    param_dtype: Any

    def setup(self) -> None:
        cfg = self.config
        if not cfg.is_tied:
            normal: Any = nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std), ("vocab", "embed"))
            self.embedding = self.param("embedding", normal, (cfg.vocab_size, cfg.model_size), self.param_dtype)
        if cfg.has_unembedding_bias:
            zeros: Any = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            self.bias = self.param("bias", zeros, (cfg.vocab_size,), self.param_dtype)


def _last(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The entry of `[B, T]` at each row's last token."""
    last = jnp.max(jnp.where(mask > 0, jnp.arange(mask.shape[1]), 0), axis=-1)
    return jnp.take_along_axis(values, last[:, None], axis=1)[:, 0]


def encode(
    model: CausalLM,
    params: PyTree,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    cache: KVCache | None = None,
    segment_ids: ArrayLike | None = None,
) -> CausalLMOutput:
    """Run `model` without computing logits; arguments as for the module."""
    output = model.apply({"params": params}, input_ids, attention_mask, None, cache, segment_ids, method="encode")
    return cast(CausalLMOutput, output)


def unembed(hidden_states: jax.Array, unembedding: Unembedding) -> jax.Array:
    """Float32 logits `[..., V]` from hidden states `[..., D]`."""
    matrix = unembedding.matrix.astype(hidden_states.dtype)
    return unembedding.finish(product(hidden_states, matrix, out_dtype=jnp.float32))
