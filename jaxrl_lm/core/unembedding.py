"""The last layer of a language model, from hidden states to logits."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_lm.core.records import record


@record
class Unembedding:
    """logits = cap(h W^T + b), with cap(z) = c tanh(z / c).

    Attributes:
        matrix: W, `[V, D]`.
        bias: b, `[V]`, or None.
        softcap: c, positive, which bounds the logits; None for no bound.

    Reference: Bello et al., 2016, Neural Combinatorial Optimization with Reinforcement Learning (the cap); Gemma Team,
    2024, Gemma 2: Improving Open Language Models at a Practical Size.
    """

    matrix: Any
    bias: Any = None
    softcap: float | None = field(default=None, metadata={"static": True})

    def finish(self, products: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
        """Logits from the products h W^T, both float32."""
        logits = products if self.bias is None else products + self.bias.astype(products.dtype)
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)

    def slope(self, logits: Float[Array, "*B V"]) -> Float[Array, "*B V"] | float:
        """Derivative of logits with respect to the products."""
        return 1.0 if self.softcap is None else 1.0 - jnp.square(logits / self.softcap)
