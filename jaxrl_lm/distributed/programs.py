"""A learner's two functions on a mesh: its first state, and its jitted update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_lm.distributed.sharding import current_mesh, state_shardings
from jaxrl_lm.distributed.work import counted
from jaxrl_lm.types import PyTree


def init_state(init: Callable[..., PyTree], params: PyTree, *args: Any, is_copied: bool = False) -> PyTree:
    """A learner's first state; its copies of the parameters, such as Adam's moments, are split as they are.

    Args:
        init: `init(params, *args) -> state`.
        params: on the mesh in use.
        args: further arguments.
        is_copied: copy the parameters, which the update else donates with the state.
    """

    def first(params: PyTree, *args: Any) -> PyTree:
        return init(jax.tree.map(jnp.copy, params) if is_copied else params, *args)

    mesh = current_mesh()
    if mesh is None:
        return first(params, *args)
    shardings = state_shardings(
        jax.eval_shape(init, params, *args), params, jax.tree.map(lambda leaf: leaf.sharding, params), mesh
    )
    return jax.jit(first, out_shardings=shardings)(params, *args)


def update_program(update: Callable[..., Any], state: PyTree) -> Any:
    """The jitted function of `jit_update`, for states that are split as this one."""
    return jax.jit(update, donate_argnums=0, **_out_shardings(state))


def jit_update(update: Callable[..., Any]) -> Callable[..., Any]:
    """`update(state, ...) -> (state, metrics)` of a learner, jitted, with its state donated and split as before."""
    compiled: Callable[..., Any] | None = None

    def call(state: PyTree, *args: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = counted(update_program(update, state))
        return compiled(state, *args)

    return call


def _out_shardings(state: PyTree) -> dict[str, Any]:
    mesh = current_mesh()
    if mesh is None:
        return {}
    replicated = NamedSharding(mesh, PartitionSpec())
    return {"out_shardings": (jax.tree.map(lambda leaf: leaf.sharding, state), replicated)}
