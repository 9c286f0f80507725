"""Learning from examples: the table of algorithms, and a run of one of them.

A new algorithm is a file in `jaxrl_lm/algorithms/`, a file here with its settings and what it loads, and a line in
`OFFLINE`.
"""

from collections.abc import Callable
from typing import Any

from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.offline.config import OfflineRunConfig
from jaxrl_lm.training.offline.dpo import DPORunConfig, load_dpo
from jaxrl_lm.training.offline.sft import SFTRunConfig, load_sft
from jaxrl_lm.training.offline.task import OfflineTask, training_of
from jaxrl_lm.training.run import train

LoadTask = Callable[[Any], OfflineTask]
"""`load(config) -> OfflineTask`, whose learner is made there."""

OFFLINE: dict[str, tuple[type[OfflineRunConfig], LoadTask]] = {
    "sft": (SFTRunConfig, load_sft),
    "dpo": (DPORunConfig, load_dpo),
}


def train_offline(config: OfflineRunConfig) -> RunFolder:
    """Train, and leave a run folder with metrics, checkpoints, plots, samples, report and model; raises as `train`."""
    load = next(load for kind, load in OFFLINE.values() if isinstance(config, kind))
    return train(config, lambda: training_of(load(config)))
