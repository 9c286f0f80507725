"""Error messages for missing optional packages."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxrl_lm.errors import InputError


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Context for imports that need one of the package's extras.

    Raises:
        InputError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} needs the package {error.name}; install it with: pip install 'jaxrl-lm[{extra}]'"
        ) from error
