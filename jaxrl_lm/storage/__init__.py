"""The folder of a run: configuration, metrics, checkpoints, plots, report; knows no model or algorithm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
