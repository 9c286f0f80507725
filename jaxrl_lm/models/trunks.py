"""Networks that map environment observations to features for policy and value heads.

All layers, including convolutions, are matrix products on `[N, D]`: under `vmap` over seeds a convolution would become
a grouped one, which is many times slower on a CPU than a batched product of patches.
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
# Each iteration multiplies small singular values by 1.5, so even 1e-8 converges to 1.
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
    """Architecture of a trunk.

    Attributes:
        hidden_sizes: units of each fully connected layer; the last are the features.
        activation: after every layer; "gelu" is exact (error function), "leaky_relu" has slope 0.01.
        kind: "mlp" flattens observations; "conv" first applies 3x3 convolutions to a grid `[H, W, C]`; "auto" uses
            them if the observation is a large enough grid.
        channels: output channels of each convolution, which reduces height and width by 2.
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
    """Maps observations to features.

    Attributes:
        config: layers.
        observation_shape: shape of one observation; leading axes are batch axes.
        num_categories: number of values of a discrete observation; None for arrays.
        is_conv: whether to start with convolutions.
        scale: factor for uint8 observations. Floating-point observations, which are already normalised, are not
            scaled.
    """

    config: TrunkConfig
    observation_shape: tuple[int, ...]
    num_categories: int | None
    is_conv: bool
    scale: float

    @nn.compact
    def __call__(self, observations: Shaped[Array, "..."]) -> Float[Array, "*B F"]:
        """Features `[..., F]` for observations `[..., *observation_shape]`."""
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
        """A dense layer on one-hot vectors, computed as a lookup in its weight."""
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
    """Build the trunk for a gymnax observation space.

    Args:
        config: layers.
        observation_space: `Discrete` (learns a table of features) or `Box`; uint8 is divided by its upper bound.

    Raises:
        InputError: the space is not supported, or too small a grid for convolutions.
    """
    if is_discrete(observation_space):
        if config.kind == "conv":
            raise InputError("kind=conv needs observations [H, W, C], but they are integers; choose mlp or auto")
        return Trunk(config=config, observation_shape=(), num_categories=observation_space.n, is_conv=False, scale=1.0)
    if not is_box(observation_space):
        raise InputError(
            f"observation_space={observation_space!r} is neither Discrete nor Box; flatten it into one array"
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
    """Uniformly random weights `[D, F]` with orthogonal rows or columns, whichever are fewer, of length `gain`.

    The Newton-Schulz iteration `X <- 1.5 X - 0.5 X X^T X` maps a normal random matrix to its polar factor. Flax's own
    initializer uses a QR decomposition, and two of these batched by `vmap` can deadlock on a CPU with two cores
    (jaxlib 0.10).

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
    """The 3x3 patches around inner cells: `[N, H, W, C]` to `[N, H - 2, W - 2, 9 C]`."""
    height, width = (size - KERNEL_SIZE + 1 for size in planes.shape[1:3])
    shifts = [(row, column) for row in range(KERNEL_SIZE) for column in range(KERNEL_SIZE)]
    return jnp.concatenate([planes[:, r : r + height, c : c + width] for r, c in shifts], axis=-1)
