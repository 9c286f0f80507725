"""Networks that turn observations of an environment into features; heads of values and actions stand on them.

Products are plain matrix products on `[N, D]`, convolutions included: under `vmap` over seeds a convolution would
become a grouped one, which a CPU computes many times slower than the batched product of its patches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError
from jaxrl_lm.spaces import is_box, is_discrete

Activation = Literal["relu", "tanh", "gelu", "silu", "elu", "leaky_relu"]
TrunkKind = Literal["auto", "mlp", "conv"]

KERNEL_SIZE = 3
GAIN = 2**0.5
# Each iteration multiplies a small singular value by 1.5, so that even one of 1e-8 comes near 1.
NUM_ITERATIONS = 52

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "gelu": partial(nn.gelu, approximate=False),
    "silu": nn.silu,
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
}


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Shape of a network's body.

    Attributes:
        hidden_sizes: units of each fully connected layer, the last of them the features.
        activation: after every layer; "gelu" is the exact one (with the error function), "leaky_relu" has slope 0.01.
        kind: "mlp" flattens an observation; "conv" sends a grid `[H, W, C]` through 3x3 convolutions first; "auto"
            does so where the observation is a grid large enough for them.
        channels: outputs of each convolution; each takes 2 off height and width.
        layer_norm: normalise every layer's outputs before the activation.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    kind: TrunkKind = "auto"
    channels: tuple[int, ...] = (16,)
    layer_norm: bool = False

    def __post_init__(self) -> None:
        checks.one_of(self, activation=Activation, kind=TrunkKind)
        for name in ("hidden_sizes", "channels"):
            sizes = getattr(self, name)
            if not sizes or min(sizes) < 1:
                raise InputError(f"{name}={sizes} must be one or more numbers of at least 1, for example 64 64")


class Trunk(nn.Module):
    """Features of observations.

    Attributes:
        config: layers.
        observation_shape: of one observation; axes before it are batch axes.
        num_categories: how many values an observation of a discrete space has, None for arrays.
        is_conv: whether convolutions come first.
        scale: what an observation of bytes is multiplied by. One that comes as floating-point numbers, normalised
            already, is left as it is.
    """

    config: TrunkConfig
    observation_shape: tuple[int, ...]
    num_categories: int | None
    is_conv: bool
    scale: float

    @nn.compact
    def __call__(self, observations: Shaped[Array, "..."]) -> Float[Array, "*B F"]:
        """Features `[..., F]` of observations `[..., *observation_shape]`."""
        num_axes = observations.ndim - len(self.observation_shape)
        batch_shape = observations.shape[:num_axes]
        assert observations.shape[num_axes:] == self.observation_shape, (observations.shape, self.observation_shape)
        sizes = self.config.hidden_sizes
        if self.num_categories is not None:
            features = self._activate(self._rows_of_table(observations.reshape(-1), sizes[0]))
            sizes = sizes[1:]
        else:
            features = observations.reshape(-1, *self.observation_shape).astype(jnp.float32)
            if self.scale != 1.0 and not jnp.issubdtype(observations.dtype, jnp.floating):
                features *= self.scale
            if self.is_conv:
                features = self._convolve(features)
            features = features.reshape(features.shape[0], -1)
        for size in sizes:
            features = self._activate(_dense(size)(features))
        return features.reshape(*batch_shape, features.shape[-1])

    def _rows_of_table(self, categories: jax.Array, size: int) -> jax.Array:
        """A dense layer of one-hot vectors, read from its weight instead of multiplied."""
        table = self.param("table", orthogonal(GAIN), (self.num_categories, size), jnp.float32)
        return table[categories]

    def _convolve(self, planes: jax.Array) -> jax.Array:
        for size in self.config.channels:
            planes = self._activate(_dense(size)(_patches(planes)))
        return planes

    def _activate(self, outputs: jax.Array) -> jax.Array:
        if self.config.layer_norm:
            outputs = nn.LayerNorm()(outputs)
        return ACTIVATIONS[self.config.activation](outputs)


def make_trunk(config: TrunkConfig, observation_space: Any) -> Trunk:
    """The trunk that fits a gymnax observation space.

    Args:
        config: layers.
        observation_space: `Discrete` (a table of features is learned) or `Box`; uint8 is divided by its upper bound.

    Raises:
        InputError: another space, or convolutions asked for where the observation is no grid large enough.
    """
    if is_discrete(observation_space):
        if config.kind == "conv":
            raise InputError("kind=conv needs observations [H, W, C], but they are integers; choose mlp or auto")
        return Trunk(config=config, observation_shape=(), num_categories=observation_space.n, is_conv=False, scale=1.0)
    if not is_box(observation_space):
        raise InputError(
            f"observation_space={observation_space!r} is neither Discrete nor Box; flatten its parts into one array"
        )
    shape = tuple(int(size) for size in observation_space.shape)
    smallest = 2 * len(config.channels) + 1
    fits_conv = len(shape) == 3 and min(shape[:2]) >= smallest
    if config.kind == "conv" and not fits_conv:
        raise InputError(
            f"kind=conv with {len(config.channels)} convolutions needs observations [H, W, C] of at least "
            f"{smallest}x{smallest}, but they are {list(shape)}; choose mlp, auto or fewer channels"
        )
    is_conv = fits_conv and config.kind != "mlp"
    scale = _scale(observation_space)
    return Trunk(config=config, observation_shape=shape, num_categories=None, is_conv=is_conv, scale=scale)


def orthogonal(gain: float) -> nn.initializers.Initializer:
    """Weights `[D, F]` with orthogonal rows or columns, whichever are fewer, of length `gain`; uniform among such.

    A matrix of normal numbers is brought to its polar factor by Newton and Schulz's iteration
    `X <- 1.5 X - 0.5 X X^T X`. Flax's own initializer takes a QR decomposition, and two of those batched by `vmap` can
    wait for each other for ever on a CPU of two cores (jaxlib 0.10).

    Reference: Saxe, McClelland and Ganguli, 2014, Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks.
    """

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        x = jax.random.normal(key, (max(shape), min(shape)), jnp.float32)
        x = jax.lax.fori_loop(0, NUM_ITERATIONS, _iterate, x / jnp.linalg.norm(x))
        return (gain * (x if shape[0] >= shape[1] else x.T)).astype(dtype)

    return init


def _iterate(_: jax.Array, x: jax.Array) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST
    return 1.5 * x - 0.5 * jnp.matmul(x, jnp.matmul(x.T, x, precision=exact), precision=exact)


def _scale(space: Any) -> float:
    if np.dtype(space.dtype) != np.uint8:
        return 1.0
    return 1.0 / max(1.0, float(np.max(np.asarray(space.high))))


def _dense(size: int) -> nn.Dense:
    return nn.Dense(size, kernel_init=orthogonal(GAIN))


def _patches(planes: jax.Array) -> jax.Array:
    """The 3x3 neighbourhoods of inner cells: `[N, H, W, C]` to `[N, H - 2, W - 2, 9 C]`."""
    height, width = (size - KERNEL_SIZE + 1 for size in planes.shape[1:3])
    shifts = [(row, column) for row in range(KERNEL_SIZE) for column in range(KERNEL_SIZE)]
    return jnp.concatenate([planes[:, r : r + height, c : c + width] for r, c in shifts], axis=-1)
