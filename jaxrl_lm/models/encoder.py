"""An encoder with a score head; it cannot generate text."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import inputs
from jaxrl_lm.models.config import Head, ModelConfig
from jaxrl_lm.models.families import Family, family_of
from jaxrl_lm.models.linear import score_head
from jaxrl_lm.models.stack import Remat
from jaxrl_lm.types import PyTree


@record
class EncoderOutput:
    """The outputs of a forward pass over `[B, T]` tokens.

    Attributes:
        hidden_states: after the last block, `[B, T, D]`.
        scores: `[B]` float32, from the pooled hidden state.
    """

    hidden_states: PyTree
    scores: PyTree


class Encoder(nn.Module):
    """A reward model on an encoder: score = w . pooled + b, as `BertForSequenceClassification` with one label.

    Attributes:
        config: the sizes, from the checkpoint.
        head: always "reward", for compatibility with `CausalLM`.
        dtype: dtype of the activations; norms, softmax and scores are always float32.
        param_dtype: dtype of the parameters.
        remat: activations that the backward pass recomputes, as of `CausalLM`.
    """

    config: ModelConfig
    head: Head = "reward"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @property
    def family(self) -> Family:
        """This model's entry in `FAMILIES`."""
        return family_of(self.config.hf_config()["model_type"])

    def setup(self) -> None:
        cfg = self.config
        self.backbone = self.family.backbone(cfg, self.dtype, self.param_dtype, self.remat)
        init = nn.initializers.normal((cfg.model_size + 1) ** -0.5)
        self.classifier = score_head(init)

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
    ) -> EncoderOutput:
        """Run the model.

        Args:
            input_ids: int `[B, T]`, each row starting with [CLS]; pad on the right. A pad id outside the vocabulary is
                allowed.
            attention_mask: 1 for a token, 0 for padding, `[B, T]`; all ones if None.
            position_ids: int `[B, T]`; 0, 1, 2, ... if None, regardless of the mask, as in Hugging Face.
            token_type_ids: segment of each token, int `[B, T]`; zeros if None.

        Raises:
            InputError: a shape does not match, an id is outside its embedding, or a row is longer than the model's
                context. Values are checked only outside `jit`.
        """
        _check(self.config, input_ids, attention_mask, position_ids, token_type_ids)
        ids = jnp.asarray(input_ids, jnp.int32)
        mask = jnp.ones_like(ids) if attention_mask is None else jnp.asarray(attention_mask, jnp.int32)
        # Replace pad ids only where they are outside the embedding: Hugging Face pools position 0 even if masked.
        ids = jnp.where((mask > 0) | (ids < self.config.vocab_size), ids, 0)
        positions = jnp.arange(ids.shape[1], dtype=jnp.int32) if position_ids is None else position_ids
        positions = jnp.broadcast_to(jnp.asarray(positions, jnp.int32), ids.shape)
        types = jnp.zeros_like(ids) if token_type_ids is None else jnp.asarray(token_type_ids, jnp.int32)
        hidden_states, pooled = self.backbone(ids, mask, positions, types)
        return EncoderOutput(hidden_states=hidden_states, scores=self.classifier(pooled)[..., 0])


def _check(config: ModelConfig, ids: ArrayLike, mask: Any, positions: Any, types: Any) -> None:
    inputs.check_shapes(ids, attention_mask=mask, token_type_ids=types)
    inputs.check_mask(mask)
    inputs.check_token_ids(ids, mask, config)
    inputs.check_range("token_type_ids", types, getattr(config, "num_token_types", 1), None, "omit them, or use 0")
    longest = config.max_positions
    if positions is None and np.shape(ids)[1] > longest:
        raise InputError(
            f"input_ids: rows have {np.shape(ids)[1]} tokens, but the model's context is {longest}; truncate them"
        )
    rows = inputs.values_of(positions)
    if rows is not None:
        remedy = "truncate the rows to the model's context"
        inputs.check_range("position_ids", np.atleast_2d(rows), longest, None, remedy)
