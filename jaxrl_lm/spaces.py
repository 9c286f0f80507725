"""Kinds of gymnax spaces. gymnax takes seconds to import, so it is imported when a space is first looked at."""

from typing import Any


def is_discrete(space: Any) -> bool:
    """Whether a space is gymnax's `Discrete`: integers from 0 to n - 1."""
    from gymnax.environments import spaces

    return isinstance(space, spaces.Discrete)


def is_box(space: Any) -> bool:
    """Whether a space is gymnax's `Box`: arrays with bounds."""
    from gymnax.environments import spaces

    return isinstance(space, spaces.Box)
