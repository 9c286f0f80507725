"""XLA's settings for tests: import this before JAX starts."""

import os
from importlib.metadata import version

# Tiny programs run once or twice: without LLVM's optimisations they compile in half the time, and with XLA's older
# emitters in a quarter less of that. Compiling is more than half of what tests of training take on a new machine.
_FLAGS = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
    # Later versions have no such flag, and XLA ends the process when it meets an unknown one.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")

os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
