"""How trajectories come about: token generation (and, later, environment scans)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
