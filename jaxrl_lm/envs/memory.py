"""How much memory the device has, for checks before anything is allocated."""

import os

import jax

from jaxrl_lm.errors import InputError


def available_bytes() -> int:
    """Free memory of an accelerator; on a CPU the total memory, since caches are released on demand."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def as_gigabytes(num_bytes: int) -> str:
    """A number of bytes for a message."""
    return f"{num_bytes / 1e9:.3g} GB"


def check_bank(
    num_levels: int, *, num_drawn: int, bytes_kept: int, bytes_while_made: int, available: int, what: str
) -> None:
    """Refuse a bank of levels that does not fit into memory.

    Args:
        num_levels: levels of the bank.
        num_drawn: levels that are made so that enough of them can be kept.
        bytes_kept: of a level of the bank.
        bytes_while_made: of a level that is being made.
        available: bytes of the device.
        what: what the levels are, to follow the number, such as " of 13x13 cells".

    Raises:
        InputError: says how many levels would fit.
    """
    needed = num_drawn * bytes_while_made
    if needed > available:
        most = available // bytes_while_made * num_levels // num_drawn
        raise InputError(
            f"num_levels={num_levels}{what} take {as_gigabytes(num_levels * bytes_kept)} "
            f"and up to {as_gigabytes(needed)} while they are made; the device has {as_gigabytes(available)}: "
            f"ask for at most {most} levels"
        )
