"""Learning algorithms: pairs of pure functions (init, update). CONTRIBUTING.md says how to add one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
