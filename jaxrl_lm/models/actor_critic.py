"""Policies and value functions of environments as Flax modules: trunks, an optional memory, heads.

Letters: B environments, T time, F features, A actions of a discrete space, D dimensions of a continuous one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_lm.models.trunks import Trunk, orthogonal

_POLICY_GAIN = 0.01  # a first policy close to uniform


class ActorCritic(nn.Module):
    """Features to a distribution's parameters and a value.

    Attributes:
        trunk: features of the policy; of both where `is_shared`.
        num_outputs: A logits, or D means.
        is_shared: one trunk for policy and value, or one each.
        memory_size: units of a GRU behind the policy's trunk; 0 for none. With a memory the trunk is shared.
        has_log_std: a state-independent log standard deviation `[D]`, for continuous actions.
        initial_log_std: its start.
    """

    trunk: Trunk
    num_outputs: int
    is_shared: bool = False
    memory_size: int = 0
    has_log_std: bool = False
    initial_log_std: float = 0.0

    def setup(self) -> None:
        self.policy_trunk = self.trunk.clone(name=None)
        if not self.is_shared and not self.memory_size:
            self.value_trunk = self.trunk.clone(name=None)
        if self.memory_size:
            self.gru = nn.GRUCell(self.memory_size)
        self.policy_head = nn.Dense(self.num_outputs, kernel_init=orthogonal(_POLICY_GAIN))
        self.value_head = nn.Dense(1, kernel_init=orthogonal(1.0))
        if self.has_log_std:
            init = nn.initializers.constant(self.initial_log_std)
            self.log_std = self.param("log_std", init, (self.num_outputs,))

    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits or means `[..., A]` and values `[...]` of observations `[..., *]`, without memory."""
        features = self.policy_trunk(observations)
        value_features = features if self.is_shared else self.value_trunk(observations)
        return self._heads(features, value_features)

    def unroll(
        self, observations: jax.Array, is_first: jax.Array, memory: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The same along time, with memory.

        Args:
            observations: `[B, T, *]`.
            is_first: whether an episode begins at the step, which forgets what was before, bool `[B, T]`.
            memory: before the first step, `[B, memory_size]`.

        Returns:
            logits or means `[B, T, A]`, values `[B, T]`, memory behind the last step `[B, memory_size]`.
        """
        features = self.policy_trunk(observations)

        def remember(module: "ActorCritic", carry: jax.Array, step: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
            seen, begins = step
            return module.gru(jnp.where(begins[:, None], 0.0, carry), seen)

        scan = nn.scan(remember, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        memory, remembered = scan(self, memory, (features, is_first))
        return *self._heads(remembered, remembered), memory

    def init_all(self, observations: jax.Array) -> None:
        """Create every parameter, from observations `[B, T, *]`."""
        if self.memory_size:
            batch, time = observations.shape[:2]
            self.unroll(observations, jnp.zeros((batch, time), bool), jnp.zeros((batch, self.memory_size)))
        else:
            self(observations)

    def _heads(self, features: jax.Array, value_features: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.policy_head(features), self.value_head(value_features)[..., 0]
