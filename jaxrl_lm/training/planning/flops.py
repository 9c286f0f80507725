"""Floating-point operations of a program, counted in its jaxpr: those of matrix products, times the trips of loops.

XLA's own count has the body of a loop once.
"""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(jaxpr: Any, *, while_trips: int = 1) -> float:
    """Operations of all matrix products of a program, over all devices.

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
        elif name == "scan":
            total += params["length"] * count_flops(params["jaxpr"], while_trips=while_trips)
        elif name == "while":
            total += while_trips * count_flops(params["body_jaxpr"], while_trips=while_trips)
        elif name in ("cond", "platform_index"):
            total += max((count_flops(each, while_trips=while_trips) for each in params.get("branches", ())), default=0)
        else:
            total += sum(count_flops(each, while_trips=while_trips) for each in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The jaxprs of a call; of a function with a custom derivative, the function's own."""
    found = []
    for value in params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        found += [each for each in values if isinstance(each, ClosedJaxpr | Jaxpr)]
    return found


def _product(equation: Any) -> float:
    left, right = (each.aval.shape for each in equation.invars[:2])
    if equation.primitive.name != "dot_general":
        return 2.0 * math.prod(left) * right[-1]
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
