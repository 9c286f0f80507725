"""Checks of settings: what every configuration class refuses, in one wording.

A message names the field, its value and what is allowed. `None` passes: it means "not given". NaN never passes.
"""

import math
from typing import Any, get_args

from jaxrl_lm.errors import InputError


def at_least(config: Any, minimum: int | float, *names: str, prefix: str = "", why: str = "") -> None:
    """Refuse fields below a minimum.

    Args:
        config: an object with the fields.
        minimum: smallest value that is allowed.
        names: of the fields.
        prefix: how the fields are reached on the command line, such as "kl.".
        why: reason to add to the message.

    Raises:
        InputError: a field is below the minimum, or NaN.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= minimum:
            raise InputError(f"{prefix}{name}={value} must be at least {minimum}{_reason(why)}")


def above(config: Any, bound: int | float, *names: str, prefix: str = "", why: str = "") -> None:
    """Refuse fields that are not strictly above a bound; arguments as `at_least`.

    Raises:
        InputError: a field is at or below the bound, or NaN.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > bound:
            raise InputError(f"{prefix}{name}={value} must be above {bound}{_reason(why)}")


def fraction(config: Any, *names: str, prefix: str = "", below: int | float = 1, why: str = "") -> None:
    """Refuse fields outside `[0, below)`; arguments as `at_least`.

    Raises:
        InputError: a field is outside, or NaN.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < below:
            raise InputError(f"{prefix}{name}={value} must be at least 0 and below {below:g}{_reason(why)}")


def between(config: Any, low: int | float, high: int | float, *names: str, prefix: str = "", why: str = "") -> None:
    """Refuse fields outside `[low, high]`; arguments as `at_least`.

    Raises:
        InputError: a field is outside, or NaN.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{prefix}{name}={value} must be from {low:g} to {high:g}{_reason(why)}")


def finite(config: Any, *names: str, prefix: str = "", why: str = "") -> None:
    """Refuse fields that are infinite or NaN; arguments as `at_least`.

    Raises:
        InputError: a field is.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not math.isfinite(value):
            raise InputError(f"{prefix}{name}={value} must be a finite number{_reason(why)}")


def one_of(config: Any, prefix: str = "", **choices: Any) -> None:
    """Refuse fields that are none of a `Literal` type's values, such as `one_of(self, schedule=ScheduleKind)`.

    Raises:
        InputError: a field has another value.
    """
    for name, kind in choices.items():
        value = getattr(config, name)
        if value not in get_args(kind):
            raise InputError(f"{prefix}{name}={value!r} must be one of {', '.join(map(str, get_args(kind)))}")


def seed(value: int) -> None:
    """Refuse a value that is not a seed for both JAX and NumPy.

    Raises:
        InputError: the seed is negative or has more than 32 bits.
    """
    if not 0 <= value < 2**32:
        raise InputError(f"seed={value} must be at least 0 and below 2**32")


def _reason(why: str) -> str:
    return f": {why}" if why else ""
