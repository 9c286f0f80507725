"""A tiny random GPT-2 with the words of the text maze, made once per process."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from jaxrl_lm.training.environments.small_model import SmallModelConfig, write_small_model


@cache
def text_model() -> str:
    """The model's folder."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    config = SmallModelConfig(out=str(root / "model"), num_layers=1, model_size=16, num_heads=2, context=64)
    return str(write_small_model(config))
