"""One program on many devices: the mesh, what is split over it, and the start of several hosts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
