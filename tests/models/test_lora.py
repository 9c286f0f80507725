"""Adapters in the models: the formula, its gradients, targets, quantised bases, merging."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrl_lm.distributed.sharding import RULES
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import FAMILIES, CausalLM, Encoder, init_params, logical_axes, param_shapes, stack_layers
from jaxrl_lm.models.lora import adapted_projections, add_adapters, merge_adapters
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.models.partition import ADAPTER, join, split, without_adapters
from tests.models import tiny

IDS, MASK = tiny.padded_batch()
LORA = LoraConfig(rank=3, alpha=6.0)
KEY = jax.random.key(0)


@cache
def base(family: str = "llama") -> tuple[Any, Any]:
    return tiny.random_model(family, **({"num_key_value_heads": 2} if family == "llama" else {}))


@cache
def adapted(lora: LoraConfig = LORA, family: str = "llama") -> tuple[Any, Any]:
    """A model whose adapters are not 0 any more."""
    model, params = add_adapters(*base(family), lora, jax.random.key(1))
    flat = flatten_dict(params)
    for number, path in enumerate(path for path in flat if path[-1] == "lora_b"):
        flat[path] = 0.1 * jax.random.normal(jax.random.key(number), flat[path].shape)
    return model, unflatten_dict(flat)


def logits(model: CausalLM, params: Any) -> np.ndarray:
    return np.asarray(tiny.forward(model, params, IDS, MASK).logits)[MASK == 1]


def dense(params: Any, scale: float) -> Any:
    """The base's parameters with W + scale * B A, by NumPy."""
    flat = flatten_dict(params)
    result = {path: leaf for path, leaf in flat.items() if path[-1] not in ADAPTER}
    for path in flat:
        if path[-1] == "lora_a":
            b, a = (np.asarray(flat[(*path[:-1], name)], np.float64) for name in ("lora_b", "lora_a"))
            result[(*path[:-1], "weight")] = jnp.asarray(result[(*path[:-1], "weight")] + scale * b @ a, jnp.float32)
    return unflatten_dict(result)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_new_adapters_change_nothing_and_parameters_without_them_are_the_bases(family):
    model, params = add_adapters(*base(family), LORA, jax.random.key(0))
    expected = logits(*base(family))
    np.testing.assert_array_equal(logits(model, params), expected)
    np.testing.assert_array_equal(logits(model, base(family)[1]), expected)
    same = jax.tree.map(lambda one, other: one is other, without_adapters(params), base(family)[1])
    assert jax.tree.all(same)


def test_a_is_uniform_as_in_peft():
    _, params = add_adapters(*tiny.random_model("gpt2", n_embd=64), LoraConfig(rank=64), jax.random.key(0))
    for a in (leaf for path, leaf in flatten_dict(params).items() if path[-1] == "lora_a"):
        bound = a.shape[1] ** -0.5
        assert 0.99 * bound < jnp.max(jnp.abs(a)) <= bound
        np.testing.assert_allclose(jnp.std(a), bound / 3**0.5, rtol=0.05)


@pytest.mark.parametrize(("lora", "scale"), [(LORA, 2.0), (replace(LORA, rslora=True), 6 / 3**0.5)])
def test_the_output_is_that_of_the_dense_formula_and_of_the_merged_model(lora, scale):
    expected = logits(base()[0], dense(adapted(lora)[1], scale))
    assert np.max(np.abs(expected - logits(*base()))) > 0.1
    np.testing.assert_allclose(logits(*adapted(lora)), expected, rtol=0, atol=2e-5)
    model, params = merge_adapters(*adapted(lora))
    assert model == base()[0]
    np.testing.assert_allclose(logits(model, params), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("is_scanned", [False, True])
def test_gradients_are_those_of_the_dense_formula(is_scanned):
    model, params = adapted()
    plain, weights = base()[0], dense(params, LORA.scale)

    def loss(model: CausalLM, params: Any) -> jax.Array:
        out = tiny.forward(model, params, IDS, MASK).logits * MASK[..., None]
        return jnp.mean(jnp.square(out))

    of_weights = flatten_dict(jax.jit(jax.grad(lambda p: loss(plain, p)))(weights))
    if is_scanned:
        model, params = model.clone(is_scanned=True), stack_layers(params, "layers")
        of_weights = flatten_dict(stack_layers(unflatten_dict(of_weights), "layers"))
    found, flat = flatten_dict(jax.jit(jax.grad(lambda p: loss(model, p)))(params)), flatten_dict(params)
    paths = [path[:-1] for path in found if path[-1] == "lora_a"]
    assert len(paths) == 7 * (1 if is_scanned else 2)
    for path in paths:
        gradient = of_weights[(*path, "weight")]
        a, b = (flat[(*path, name)] for name in ADAPTER)
        np.testing.assert_allclose(
            found[(*path, "lora_a")], LORA.scale * np.swapaxes(b, -1, -2) @ gradient, rtol=1e-3, atol=2e-5
        )
        np.testing.assert_allclose(
            found[(*path, "lora_b")], LORA.scale * gradient @ np.swapaxes(a, -1, -2), rtol=1e-3, atol=2e-5
        )


def test_a_scanned_stack_computes_the_same_and_is_adapted_itself_too():
    model, params = adapted()
    scanned = model.clone(is_scanned=True)
    found = logits(scanned, stack_layers(params, "layers"))
    np.testing.assert_allclose(found, logits(model, params), rtol=0, atol=2e-5)
    plain = base()[0].clone(is_scanned=True)
    again, stacked = add_adapters(plain, stack_layers(base()[1], "layers"), LORA, jax.random.key(0))
    assert again == scanned
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, stack_layers(params, "layers"))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj", "v_proj"), {("self_attn", "q_proj"), ("self_attn", "v_proj")}),
        (("mlp.down_proj",), {("mlp", "down_proj")}),
    ],
)
def test_targets_are_ends_of_names(targets, expected):
    model, _ = add_adapters(*base(), LoraConfig(rank=1, targets=targets), jax.random.key(0))
    assert {path[-2:] for path in adapted_projections(model)} == expected
    assert len(adapted_projections(model)) == 2 * len(expected)


def test_a_name_of_two_projections_can_be_told_apart():
    model, _ = add_adapters(*base("gpt2"), LoraConfig(rank=1, targets=("attn.c_proj",)), jax.random.key(0))
    assert {path[-2:] for path in adapted_projections(model)} == {("attn", "c_proj")}


@pytest.mark.parametrize("targets", [("c_attn",), ("q_proj", "proj"), ("attn.q_proj",)])
def test_a_target_that_matches_nothing_is_refused_with_the_names_there_are(targets):
    with pytest.raises(InputError) as error:
        add_adapters(*base(), LoraConfig(rank=1, targets=targets), jax.random.key(0))
    assert repr(targets[-1]) in str(error.value)
    assert "'q_proj'" not in str(error.value)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or give all-linear" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank": -1}, "lora.rank=-1"),
        ({"rank": 1, "alpha": 0.0}, "lora.alpha=0.0"),
        ({"rank": 1, "alpha": float("nan")}, "lora.alpha=nan"),
        ({"rank": 1, "targets": ()}, "lora.targets="),
        ({"rank": 1, "targets": ("q_proj", "all-linear")}, "give it alone"),
        ({"quantize": "nf4"}, "lora.quantize='nf4' with lora.rank=0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, named):
    with pytest.raises(InputError, match=named.replace("(", r"\(")):
        LoraConfig(**settings)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_computes_with_the_weights_that_merging_gives(kind):
    lora = replace(LORA, quantize=kind)
    model, params = adapted(lora)
    merged_model, merged = merge_adapters(model, params)
    assert merged_model == base()[0]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), merged) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), base()[1]
    )
    np.testing.assert_allclose(logits(model, params), logits(merged_model, merged), rtol=0, atol=2e-5)
    exact, flat = flatten_dict(dense(adapted()[1], LORA.scale)), flatten_dict(merged)
    largest = {"int8": 0.5 / 127, "nf4": 0.16}[kind]  # the widest half gap of the codes is 0.152
    for path, leaf in flatten_dict(base()[1]).items():
        bound = largest * np.max(np.abs(leaf)) * 1.01 if path[-1] == "weight" else 0
        assert np.max(np.abs(exact[path] - flat[path])) <= bound + 1e-6


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_stored_tree_of_a_quantised_base_has_a_quarter_or_an_eighth_of_the_bytes(kind):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    model, params = tiny.random_model("llama", **sizes)
    _, quantised = add_adapters(model, params, LoraConfig(rank=1, quantize=kind), jax.random.key(0))
    names = {"int8": "weight_int8", "nf4": "weight_nf4"}
    count = lambda tree, name: sum(leaf.nbytes for path, leaf in flatten_dict(tree).items() if path[-1] == name)  # noqa: E731
    assert count(quantised, "weight") == 0
    assert count(quantised, names[kind]) == count(params, "weight") / {"int8": 4, "nf4": 8}[kind]
    assert count(quantised, "weight_scale") <= count(params, "weight") / 64


def test_the_backward_pass_of_a_scanned_quantised_stack_keeps_no_dequantised_weights():
    model, params = tiny.random_model("llama", hidden_size=128, intermediate_size=256, num_hidden_layers=8)
    ids, mask = (np.tile(each, (2, 1)) for each in (IDS, MASK))  # more than FEW_ROWS
    found = {}
    for kind in ("none", "nf4"):
        lora = LoraConfig(rank=1, quantize=kind)
        adapted_model, tree = add_adapters(model.clone(is_scanned=True), stack_layers(params, "layers"), lora, KEY)
        part, frozen = split(tree)

        def loss(part, frozen, model=adapted_model):
            return jnp.sum(jnp.square(tiny.forward(model, join(part, frozen), ids, mask).logits))

        program = jax.jit(jax.grad(loss)).lower(part, frozen).compile()
        found[kind] = program.memory_analysis().temp_size_in_bytes
    num_bytes = sum(leaf.nbytes for path, leaf in flatten_dict(params).items() if path[-1] == "weight")
    assert found["nf4"] - found["none"] < 0.25 * num_bytes  # of two layers of eight


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("is_scanned", [False, True])
def test_every_leaf_is_as_the_module_declares_it_and_has_logical_axes(kind, is_scanned):
    model, params = adapted(replace(LORA, quantize=kind))
    if is_scanned:
        model, params = model.clone(is_scanned=True), stack_layers(params, "layers")
    shape = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(shape, param_shapes(model)) == jax.tree.map(shape, params)
    axes = flatten_dict(logical_axes(model))
    for path, leaf in flatten_dict(params).items():
        assert len(axes[path]) == leaf.ndim
        assert {name for name in axes[path] if name is not None} <= RULES.keys()
        assert path[-1] not in ADAPTER or "rank" in axes[path]


def test_an_encoders_pooler_is_a_part_of_its_head_and_is_left_alone():
    config = tiny.hf_config("bert", hidden_size=32, type_vocab_size=2).to_dict()
    model = Encoder(FAMILIES["bert"].config_from_hf(config))
    lora = LoraConfig(rank=1, quantize="int8")
    model, params = add_adapters(model, init_params(model, jax.random.key(0)), lora, jax.random.key(0))
    assert params["backbone"]["pooler"]["dense"].keys() == {"weight", "bias"}
    assert len(adapted_projections(model)) == 2 * 6
    merged_model, merged = merge_adapters(model, params)
    apply = jax.jit(lambda model, p: model.apply({"params": p}, IDS, MASK).scores, static_argnums=0)
    np.testing.assert_allclose(apply(model, params), apply(merged_model, merged), rtol=0, atol=1e-5)
