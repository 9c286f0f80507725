"""Policies and value functions for environments as Flax modules: trunks, an optional memory, heads.

Dimensions: B environments, T time, F features, A discrete actions, D dimensions of continuous actions.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_lm.models.trunks import Trunk, orthogonal

MemoryKind = Literal["gru", "lstm"]
StdKind = Literal["parameter", "state"]

_POLICY_GAIN = 0.01  # the initial policy is close to uniform


def memory_width(kind: MemoryKind, size: int) -> int:
    """Width of the state of a memory with `size` units; an LSTM carries cells as well as outputs."""
    return 2 * size if kind == "lstm" else size


class ActorCritic(nn.Module):
    """Policy and value heads on trunks, with an optional memory.

    Attributes:
        trunk: features of the policy; also of the value if `is_shared`.
        num_actions: A logits, or D means.
        is_shared: whether policy and value share a trunk.
        memory_size: units of a memory after the policy's trunk; 0 for none. A memory implies a shared trunk.
        memory_kind: "gru" or "lstm".
        std: for continuous actions: "parameter" (the log standard deviation is a parameter `log_std` `[D]`) or
            "state" (it is D further outputs after the means). None for discrete actions.
        initial_log_std: initial value of the parameter.
    """

    trunk: Trunk
    num_actions: int
    is_shared: bool = False
    memory_size: int = 0
    memory_kind: MemoryKind = "gru"
    std: StdKind | None = None
    initial_log_std: float = 0.0

    def setup(self) -> None:
        self.policy_trunk = self.trunk.clone(name=None)
        if not self.is_shared and not self.memory_size:
            self.value_trunk = self.trunk.clone(name=None)
        if self.memory_size:
            cell: Any = nn.OptimizedLSTMCell if self.memory_kind == "lstm" else nn.GRUCell
            self.cell: Any = cell(self.memory_size, recurrent_kernel_init=orthogonal(1.0))
        num_outputs = 2 * self.num_actions if self.std == "state" else self.num_actions
        self.policy_head = nn.Dense(num_outputs, kernel_init=orthogonal(_POLICY_GAIN))
        self.value_head = nn.Dense(1, kernel_init=orthogonal(1.0))
        if self.std == "parameter":
            init = nn.initializers.constant(self.initial_log_std)
            self.log_std = self.param("log_std", init, (self.num_actions,), jnp.float32)

    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Policy outputs `[..., A]` and values `[...]` for observations `[..., *]`, without memory."""
        features = self.policy_trunk(observations)
        value_features = features if self.is_shared else self.value_trunk(observations)
        return self._heads(features, value_features)

    def unroll(
        self, observations: jax.Array, is_first: jax.Array, memory: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Policy outputs and values over time, with memory.

        Args:
            observations: `[B, T, *]`.
            is_first: whether an episode begins at the step, which resets the memory, bool `[B, T]`.
            memory: state before the first step, `[B, M]`, M the `memory_width`; for an LSTM cells, then outputs.

        Returns:
            policy outputs `[B, T, A]`, values `[B, T]`, memory after the last step `[B, M]`.
        """
        features = self.policy_trunk(observations)

        def remember(module: "ActorCritic", carry: jax.Array, step: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
            seen, begins = step
            carry = jnp.where(begins[:, None], 0.0, carry)
            if module.memory_kind == "gru":
                return module.cell(carry, seen)
            carry, outputs = module.cell(tuple(jnp.split(carry, 2, axis=-1)), seen)
            return jnp.concatenate(carry, axis=-1), outputs

        scan = nn.scan(remember, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        memory, remembered = scan(self, memory, (features, is_first))
        return *self._heads(remembered, remembered), memory

    def init_all(self, observations: jax.Array) -> None:
        """Create every parameter, from observations `[B, T, *]`."""
        if self.memory_size:
            batch, time = observations.shape[:2]
            memory = jnp.zeros((batch, memory_width(self.memory_kind, self.memory_size)), jnp.float32)
            self.unroll(observations, jnp.zeros((batch, time), bool), memory)
        else:
            self(observations)

    def _heads(self, features: jax.Array, value_features: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.policy_head(features), self.value_head(value_features)[..., 0]
