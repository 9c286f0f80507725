"""Optional packages: what a command says where they are missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxrl_lm.errors import InputError


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Context of imports that an extra of the package brings.

    Raises:
        InputError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} needs the package {error.name}; install what it needs with: pip install 'jaxrl-lm[{extra}]'"
        ) from error
