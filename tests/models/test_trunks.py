"""Networks over observations: shapes, equality with plain layers, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from gymnax.environments import spaces

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import trunks
from jaxrl_lm.models.trunks import TrunkConfig, make_trunk

GRID = spaces.Box(0, 1, (5, 6, 3), jnp.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (4,), jnp.float32)


def init(trunk, space):
    return jax.jit(trunk.init)(jax.random.key(0), jnp.zeros((1, *space.shape), space.dtype))


@pytest.mark.parametrize("space", [GRID, VECTOR, spaces.Discrete(7), spaces.Box(0.0, 1.0, ())])
def test_features_keep_any_batch_axes(space):
    trunk = make_trunk(TrunkConfig(hidden_sizes=(8, 5), layer_norm=True), space)
    params = init(trunk, space)
    apply = jax.jit(trunk.apply)
    single = apply(params, jnp.ones(space.shape, space.dtype))
    assert single.shape == (5,)
    for batch_shape in ((2,), (2, 3)):
        features = apply(params, jnp.ones((*batch_shape, *space.shape), space.dtype))
        np.testing.assert_allclose(features, np.broadcast_to(single, (*batch_shape, 5)), rtol=1e-5, atol=1e-6)


def test_an_mlp_equals_its_layers_written_out():
    trunk = make_trunk(TrunkConfig(hidden_sizes=(8, 5), activation="relu"), VECTOR)
    params = init(trunk, VECTOR)
    x = np.array([[0.5, -1.0, 2.0, 0.0]], np.float32)
    features = x
    for name in ("Dense_0", "Dense_1"):
        layer = params["params"][name]
        features = np.maximum(features @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
    np.testing.assert_allclose(trunk.apply(params, jnp.asarray(x)), features, rtol=1e-5, atol=1e-6)


def test_a_table_is_a_dense_layer_of_one_hot_vectors():
    trunk = make_trunk(TrunkConfig(hidden_sizes=(5,)), spaces.Discrete(7))
    params = init(trunk, spaces.Discrete(7))
    categories = jnp.array([[3, 0], [6, 3]])
    expected = np.tanh(np.eye(7)[np.asarray(categories)] @ np.asarray(params["params"]["table"]))
    np.testing.assert_allclose(trunk.apply(params, categories), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "num_planes"), [(3, 3, 1), (7, 4, 3)])
def test_patches_times_a_matrix_are_a_convolution(height, width, num_planes):
    planes = jax.random.normal(jax.random.key(0), (2, height, width, num_planes))
    conv = nn.Conv(4, (3, 3), padding="VALID")
    params = conv.init(jax.random.key(1), planes)
    matrix = params["params"]["kernel"].reshape(-1, 4)
    result = trunks._patches(planes) @ matrix + params["params"]["bias"]
    np.testing.assert_allclose(result, conv.apply(params, planes), rtol=1e-5, atol=1e-5)


def test_auto_convolves_grids_that_are_large_enough():
    small = spaces.Box(0, 1, (2, 9, 3), jnp.uint8)
    assert make_trunk(TrunkConfig(), GRID).is_conv
    assert not make_trunk(TrunkConfig(), small).is_conv
    assert not make_trunk(TrunkConfig(), VECTOR).is_conv
    assert not make_trunk(TrunkConfig(kind="mlp"), GRID).is_conv
    assert make_trunk(TrunkConfig(channels=(4, 4)), GRID).is_conv
    assert not make_trunk(TrunkConfig(channels=(4, 4, 4)), GRID).is_conv


def test_bytes_are_divided_by_their_bound_and_floats_are_not():
    pixels = spaces.Box(0, 255, (4,), jnp.uint8)
    trunk, plain = (make_trunk(TrunkConfig(hidden_sizes=(3,)), space) for space in (pixels, VECTOR))
    params = init(trunk, pixels)
    bright = trunk.apply(params, jnp.full((1, 4), 255, jnp.uint8))
    np.testing.assert_allclose(bright, plain.apply(params, jnp.ones((1, 4))), rtol=1e-6)
    # Normalised bytes come as floats, and must not be divided once more.
    np.testing.assert_allclose(trunk.apply(params, jnp.ones((1, 4))), bright, rtol=1e-6)
    assert make_trunk(TrunkConfig(), GRID).scale == 1.0


@pytest.mark.parametrize(
    ("activation", "expected"),
    [  # torch.nn.functional at -1 and 0.5
        ("relu", [0.0, 0.5]),
        ("tanh", [-0.7615942, 0.46211717]),
        ("gelu", [-0.15865525, 0.34573123]),
        ("silu", [-0.26894143, 0.31122968]),
        ("elu", [-0.63212055, 0.5]),
        ("leaky_relu", [-0.01, 0.5]),
    ],
)
def test_activations_are_those_of_torch(activation, expected):
    np.testing.assert_allclose(trunks.ACTIVATIONS[activation](jnp.array([-1.0, 0.5])), expected, rtol=1e-6)
    trunk = make_trunk(TrunkConfig(hidden_sizes=(1,), activation=activation), spaces.Box(-1.0, 1.0, (1,)))
    params = {"params": {"Dense_0": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}}
    np.testing.assert_allclose(trunk.apply(params, jnp.array([[-1.0], [0.5]]))[:, 0], expected, rtol=1e-6)


def test_weights_start_orthogonal_with_gain_sqrt_2_and_biases_at_zero():
    trunk = make_trunk(TrunkConfig(hidden_sizes=(16, 4)), VECTOR)
    layers = init(trunk, VECTOR)["params"]
    kernel = np.asarray(layers["Dense_1"]["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(4), atol=1e-5)
    assert not np.any(layers["Dense_0"]["bias"])


def test_layer_norm_bounds_features_whatever_the_scale_of_observations():
    trunk = make_trunk(TrunkConfig(hidden_sizes=(32,), activation="relu", layer_norm=True), VECTOR)
    params = init(trunk, VECTOR)
    observations = jax.random.normal(jax.random.key(1), (9, 4))
    one, many = trunk.apply(params, observations), trunk.apply(params, 1000.0 * observations)
    np.testing.assert_allclose(one, many, rtol=1e-2, atol=1e-3)
    assert np.sum(np.square(many), axis=-1).max() <= 32.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 6), (3, 9), (64, 5), (100, 100)])
def test_orthogonal_weights_have_equal_singular_values(shape):
    weights = jax.jit(trunks.orthogonal(3.0), static_argnums=1)(jax.random.key(0), shape)
    np.testing.assert_allclose(np.linalg.svd(weights, compute_uv=False), 3.0, rtol=1e-5)


def test_orthogonal_weights_are_uniform_over_rotations():
    keys = jax.random.split(jax.random.key(0), 4000)
    weights = np.asarray(jax.jit(jax.vmap(lambda key: trunks.orthogonal(1.0)(key, (3, 3))))(keys))
    # Of a uniform rotation or reflection of 3 axes, each entry is uniform between -1 and 1.
    np.testing.assert_allclose(weights.mean(0), 0.0, atol=0.04)
    np.testing.assert_allclose(np.square(weights).mean(0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(np.mean(weights**4, 0), 1 / 5, atol=0.02)
    np.testing.assert_allclose(np.mean(np.linalg.det(weights)), 0.0, atol=0.07)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_sizes": ()}, "hidden_sizes=()"),
        ({"hidden_sizes": (8, 0)}, "hidden_sizes=(8, 0)"),
        ({"channels": (-1,)}, "channels=(-1,)"),
    ],
)
def test_config_names_the_field_it_refuses(changes, named):
    with pytest.raises(InputError) as caught:
        TrunkConfig(**changes)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [("activation", "swish", "relu, tanh, gelu, silu, elu, leaky_relu"), ("kind", "cnn", "auto, mlp, conv")],
)
def test_an_unknown_choice_is_refused_and_the_known_ones_are_named(field, value, choices):
    config = TrunkConfig()
    object.__setattr__(config, field, value)  # in the tests, beartype would refuse it before TrunkConfig does
    with pytest.raises(InputError, match=rf"^{field}={value!r} must be one of {choices}$"):
        config.__post_init__()


@pytest.mark.parametrize("space", [VECTOR, spaces.Discrete(3), spaces.Box(0, 1, (2, 9, 3))])
def test_convolutions_are_refused_where_there_is_no_grid(space):
    with pytest.raises(InputError, match="kind=conv"):
        make_trunk(TrunkConfig(kind="conv"), space)


def test_spaces_of_several_parts_are_refused():
    with pytest.raises(InputError, match="neither Discrete nor Box"):
        make_trunk(TrunkConfig(), spaces.Dict({"a": VECTOR}))
