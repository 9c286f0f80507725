"""One MLIR context for all programs that JAX lowers in the tests.

JAX makes one per program, which takes a fifth of the tests' time and half of their memory.
"""

from functools import cache

from jax._src.interpreters import mlir
from jaxlib.mlir import ir

# Private to JAX: there in 0.10 and 0.11, and where it is not, tests are slower.
_make = getattr(mlir, "make_ir_context", None)

if _make is not None:
    _shared = cache(_make)

    def _context() -> ir.Context:
        # A program that is compiled while another one is lowered would become a part of it.
        return _shared() if ir.Context.current is None else _make()

    mlir.make_ir_context = _context
