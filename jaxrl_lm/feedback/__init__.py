"""Labels by human annotators: the web page that collects them and the database that stores them.

Needs the extra `label`; does not import JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
