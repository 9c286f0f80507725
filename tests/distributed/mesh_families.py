"""Log-probs and gradients of families, and TPUs' attention, on one device and on a mesh of eight; prints differences.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.distributed.mesh_families VARIANT...
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import distributed
from jaxrl_lm.core.token_log_probs import token_log_probs
from jaxrl_lm.distributed import MeshConfig
from jaxrl_lm.distributed.sharding import by_batch_part
from jaxrl_lm.models import attention, logical_axes, stack_layers
from jaxrl_lm.models.causal_lm import encode
from tests.models import interpreted, tiny

BATCH, LENGTH = 8, 6
SIZES = {"vocab_size": 104}  # which the mesh divides


def gradients(name: str, config: MeshConfig | None) -> tuple[Any, Any]:
    """Log-probs `[B, T]` and the gradient of their mean square; on a mesh of a scanned and rematerialised model."""
    model_type, options = tiny.VARIANTS[name]
    model, params = tiny.random_model(model_type, **(options | SIZES))
    if config is not None:
        model, params = model.clone(is_scanned=True, remat="full"), stack_layers(params, model.family.layers)
    tokens = np.random.default_rng(0).integers(0, 100, (BATCH, LENGTH))

    def loss(params: Any, tokens: Any) -> tuple[Any, Any]:
        hidden = encode(model, params, tokens).hidden_states
        log_probs, _ = token_log_probs(hidden[:, :-1], model.unembedding(params), tokens[:, 1:])
        return jnp.mean(jnp.square(log_probs)), log_probs

    with distributed.use_mesh(None if config is None else distributed.make_mesh(config)):
        params = distributed.place_params(params, logical_axes(model))
        grads, log_probs = jax.jit(jax.grad(loss, has_aux=True))(params, distributed.place_batch(tokens))
    return log_probs, grads if config is not None else stack_layers(grads, model.family.layers)


def compare(name: str) -> dict[str, float]:
    """Largest differences, relative to the largest number."""
    found, expected = gradients(name, MeshConfig(data=2, fsdp=2, tensor=2)), gradients(name, None)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    errors = [np.max(np.abs(np.asarray(a) - np.asarray(b))) / (np.max(np.abs(b)) + 1e-3) for a, b in pairs]
    return {"log_probs": float(errors[0]), "gradients": float(max(errors[1:]))}


def attention_error(num_kv_heads: int) -> float:
    """The largest difference between splash attention on a mesh and plain attention, and between their gradients."""
    rng = np.random.default_rng(0)
    shapes = [(BATCH, 128, 4, 8), *[(BATCH, num_kv_heads, 128, 8)] * 2]
    qkv = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    segments = jnp.asarray(np.repeat([[1] * 50 + [2] * 78], BATCH, axis=0))

    def gradients(*qkv: Any) -> Any:
        visible = attention.visible_keys(segments, None, "auto")
        loss = lambda *qkv: jnp.sum(jnp.sin(attention.attend(*qkv, visible, 0.3)))  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(*qkv)

    expected = jax.jit(gradients)(*qkv)
    mesh = distributed.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with distributed.use_mesh(mesh), interpreted.splash_attention():
        found = jax.jit(lambda *qkv: gradients(*qkv))(*distributed.place_batch(qkv))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def rows_of_a_part(batch: int) -> int:
    """How many rows of a batch `by_batch_part` computes at a time on this mesh."""
    rows = []

    def note(x: jax.Array) -> jax.Array:
        rows.append(len(x))
        return x

    with distributed.use_mesh(distributed.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        jax.jit(lambda x: by_batch_part(note, 1, x))(jnp.zeros(batch))
    return rows[-1]


if __name__ == "__main__":
    parts = {str(batch): rows_of_a_part(batch) for batch in (8, 6)}
    errors = {"splash": [attention_error(num_kv_heads) for num_kv_heads in (2, 1)]}  # which tensor=2 divides or not
    print(json.dumps({"rows": parts, **errors, **{name: compare(name) for name in sys.argv[1:]}}))
