"""Floating-point operations of a program, counted in its jaxpr: those of products, times the trips of loops.

XLA's own count has the body of a loop once.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

_ATTENTION = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 4}
"""Products of cuDNN's attention, by the name of its primitive."""


def count_flops(jaxpr: Any, *, while_trips: int = 1) -> float:
    """Operations of all matrix products and convolutions of a program, over all devices.

    Args:
        jaxpr: a closed jaxpr, such as `traced.jaxpr`.
        while_trips: trips of each `while_loop`, whose number a program does not know.
    """
    return _count(jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr, while_trips)


def _count(jaxpr: Any, while_trips: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "ragged_dot", "ragged_dot_general"):
            total += _product(equation)
        elif name in _ATTENTION or name == "pallas_call":
            total += _attention(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += params["length"] * count_flops(params["jaxpr"], while_trips=while_trips)
        elif name == "shard_map":
            total += _parts(equation) * count_flops(params["jaxpr"], while_trips=while_trips)
        elif name == "while":
            total += while_trips * count_flops(params["body_jaxpr"], while_trips=while_trips)
        elif name in ("cond", "platform_index"):
            total += max((count_flops(each, while_trips=while_trips) for each in params.get("branches", ())), default=0)
        else:
            total += sum(count_flops(each, while_trips=while_trips) for each in _inner(params))
    return total


def _parts(equation: Any) -> float:
    """Into how many parts `shard_map` splits its arguments, of which its program has one."""
    pairs = zip(equation.invars, equation.params["jaxpr"].invars, strict=True)
    return max(math.prod(whole.aval.shape) / math.prod(part.aval.shape) for whole, part in pairs)


def _inner(params: dict[str, Any]) -> list[Any]:
    """The jaxprs of a call; of a function with a custom derivative, the function's own."""
    found = []
    for value in params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        found += [each for each in values if isinstance(each, ClosedJaxpr | Jaxpr)]
    return found


def _product(equation: Any) -> float:
    """Twice the size of the left factor times that of the right one's axes which the left one lacks.

    A ragged product counts each row with the weights of its own group, as accelerators compute it.
    """
    left, right = (each.aval.shape for each in equation.invars[:2])
    numbers, groups = equation.params.get("ragged_dot_dimension_numbers"), ()
    if numbers is not None:
        groups, numbers = numbers.rhs_group_dimensions, numbers.dot_dimension_numbers
    (_, contracted), (_, batch) = numbers or equation.params["dimension_numbers"]
    shared = (*contracted, *batch, *groups)
    return 2.0 * math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in shared)


def _attention(equation: Any) -> float:
    """Operations of plain attention, each query with each key, whatever a kernel skips or computes again.

    Splash attention is three kernels, each of which needs two products: the result, the gradient of the queries, those
    of keys and values. Its keys are `[B, K, S, H]`, those of cuDNN `[B, S, K, H]`. Columns that fill a row's last block
    count.
    """
    name = equation.primitive.name
    shapes = [each.aval.shape for each in equation.invars if jnp.issubdtype(each.aval.dtype, jnp.floating)]
    queries, keys = shapes[:2]
    if name == "pallas_call":
        return 2.0 * 2 * math.prod(queries) * keys[-2]
    return 2.0 * _ATTENTION[name] * math.prod(queries) * keys[-3]


def _convolution(equation: Any) -> float:
    """Twice the size of the output times that of the kernel for one output channel."""
    kernel = equation.invars[1].aval.shape
    channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / channels
