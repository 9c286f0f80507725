"""Learning algorithms: pairs of pure functions (init, update).

A new algorithm is one file and one line in `ALGORITHMS`; the contract tests then run over it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
