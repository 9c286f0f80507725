"""Compiled programs on disk, so that a run that starts or resumes again compiles nothing."""

import os
import platform
import zlib
from pathlib import Path

import jax

_MOST_BYTES = 10 * 2**30
_CPUINFO = Path("/proc/cpuinfo")


def use_compilation_cache() -> None:
    """Keep programs that take a second or more to compile, in the user's cache folder.

    A program for a CPU uses the instructions of the processor that it was compiled on, so each kind has a folder of its
    own. JAX's environment variables go first: with JAX_COMPILATION_CACHE_DIR another folder is used, and with
    JAX_ENABLE_COMPILATION_CACHE=false none. What was not used for longest goes when the folder is larger than 10 GB.
    """
    is_set = getattr(jax.config, "jax_compilation_cache_dir") is not None  # noqa: B009 its type does not declare it
    if is_set or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "jaxrl_lm" / f"xla-{zlib.crc32(_processor().encode()):08x}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)


def _processor() -> str:
    """What the processor can do, in words."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()} {platform.processor()} {features}"
