"""How much memory the device has, for checks before anything is allocated."""

import os

import jax


def available_bytes() -> int:
    """Free memory of an accelerator; on a CPU the total memory, since caches are released on demand."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def as_gigabytes(num_bytes: int) -> str:
    """A number of bytes for a message."""
    return f"{num_bytes / 1e9:.3g} GB"
