"""The mixture of experts against loops and a dense product, its checkpoints, and configurations that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import FAMILIES, from_pretrained, save_pretrained
from jaxrl_lm.models.qwen3_moe import mix_experts
from tests.models import tiny

B, T, D, F, E, K = 2, 5, 6, 4, 5, 2


def problem():
    rng = np.random.default_rng(0)
    x, *weights = (rng.normal(size=shape).astype(np.float32) for shape in ((B, T, D), (E, F, D), (E, F, D), (E, D, F)))
    # Expert 3 is never chosen, and expert 0 by every token.
    others = rng.choice([1, 2, 4], (B, T))
    chosen = np.stack([np.zeros_like(others), others], axis=-1).astype(np.int32)
    arrays = (x, rng.random((B, T, K)).astype(np.float32), rng.permuted(chosen, axis=-1), *weights)
    return [jnp.asarray(array) for array in arrays]


def test_experts_equal_a_loop_over_tokens():
    found = jax.jit(lambda *arrays: mix_experts(jnp.tanh, *arrays))(*problem())
    x, weights, chosen, gate, up, down = map(np.asarray, problem())
    for row in range(B):
        for step in range(T):
            expected = np.zeros(D)
            for weight, expert in zip(weights[row, step], chosen[row, step], strict=True):
                hidden = np.tanh(gate[expert] @ x[row, step]) * (up[expert] @ x[row, step])
                expected += weight * (down[expert] @ hidden)
            np.testing.assert_allclose(found[row, step], expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_all_experts_and_a_mask():
    x, weights, chosen, *experts = problem()

    def dense(x, weights, gate, up, down):
        hidden = jnp.tanh(jnp.einsum("BTD,EFD->BTEF", x, gate)) * jnp.einsum("BTD,EFD->BTEF", x, up)
        shares = jnp.sum(jax.nn.one_hot(chosen, E) * weights[..., None], axis=-2)
        return jnp.einsum("BTEF,EDF,BTE->BTD", hidden, down, shares)

    def grads(function):
        return jax.jit(jax.grad(lambda *given: jnp.sum(jnp.sin(function(*given))), argnums=range(5)))

    sparse = grads(lambda x, weights, *experts: mix_experts(jnp.tanh, x, weights, chosen, *experts))
    for found, expected in zip(sparse(x, weights, *experts), grads(dense)(x, weights, *experts), strict=True):
        assert np.max(np.abs(expected)) > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.any(sparse(x, weights, *experts)[2][3])  # nothing was sent there


def test_weights_in_the_form_of_transformers_memory_load(tmp_path):
    model, params = tiny.random_model("qwen3_moe")
    save_pretrained(tmp_path, model, params)
    tensors = load_file(tmp_path / "model.safetensors")
    experts = {name: tensors.pop(name) for name in list(tensors) if ".experts." in name}
    assert len(experts) == 2 * 4 * 3  # layers, experts, projections
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts."
        stacks = {
            kind: np.stack([experts[f"{stem}{number}.{kind}_proj.weight"] for number in range(4)])
            for kind in ("gate", "up", "down")
        }
        tensors[f"{stem}gate_up_proj"] = np.concatenate([stacks["gate"], stacks["up"]], axis=1)
        tensors[f"{stem}down_proj"] = stacks["down"]
    save_file(tensors, tmp_path / "model.safetensors")
    _, loaded = from_pretrained(tmp_path)
    for found, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(found, expected)


def damage(tensors, kind):
    """Change one tensor of an expert."""
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensor = tensors.pop(name)
    if kind == "other shape":
        tensors[name] = tensor[:-1].copy()
    elif kind == "other number":
        tensors[name.replace(".2.", ".7.")] = tensor
    elif kind == "all wider":
        tensors[name] = tensor
        ours = [key for key in tensors if key.endswith("up_proj.weight")]
        tensors |= {key: np.concatenate([tensors[key]] * 2) for key in ours}


@pytest.mark.parametrize("kind", ["missing", "other shape", "other number", "all wider"])
def test_experts_that_do_not_match_are_refused(tmp_path, kind):
    save_pretrained(tmp_path, *tiny.random_model("qwen3_moe"))
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors, kind)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"mlp\.experts.*up_proj.*weights and config.json belong to different models"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_experts_per_tok": 5}, "num_experts_per_tok=5 must be at most num_experts=4"),
        ({"num_experts_per_tok": 0}, "num_chosen=0 must be at least 1"),
        ({"moe_intermediate_size": 0}, "expert_size=0 must be at least 1"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step=0 must be at least 1"),
    ],
)
def test_impossible_numbers_of_experts_are_refused(options, words):
    config = tiny.hf_config("qwen3_moe", **options).to_dict()
    with pytest.raises(InputError, match=words):
        FAMILIES["qwen3_moe"].config_from_hf(config)
