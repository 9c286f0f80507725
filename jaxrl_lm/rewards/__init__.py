"""What trajectories earn: reward functions of texts, and what each token gets of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
