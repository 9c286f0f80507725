"""Settings of a benchmark, in a module without heavy imports, for `--help`."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.settings import Dtype

Suite = Literal["env", "lm", "scale"]

_ASSETS = Path(__file__).parents[1] / "assets"
BASELINES = _ASSETS / "baselines"
DIALOGUE = _ASSETS / "dialogue" / "model"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure speed on this machine's devices, and compare it with what they can do and with an earlier measurement.

    Attributes:
        suite: env: steps of mazes, and of training in them; lm: generation, scoring and updates of a language model;
            scale: one and several devices (on a CPU, eight virtual ones).
        model: a folder or hub id; None takes the folder that the environment variable JAXRL_LM_SMOLLM2 names, or else
            (and for `quick`) the dialogue model that ships with the package.
        num_answers: completions per update.
        num_tokens: tokens per completion.
        dtype: dtype of activations.
        num_envs: parallel mazes.
        num_steps: steps of each maze per call.
        devices: numbers of devices of the suite scale, as far as there are so many.
        repeats: calls of each case, after one that compiles; the median counts.
        out: JSON file for the results.
        baselines: folder with earlier measurements, one file per device and model; None is that of the package.
        save_baseline: keep this measurement there, instead of comparing.
        max_fall: largest fall below the earlier measurement, as a fraction; with a larger one the exit code is 1.
        profile: also write a trace of one call of each case of env and lm into this folder, for TensorBoard or
            Perfetto.
        quick: tiny sizes, to see in seconds that everything runs.
    """

    suite: tuple[Suite, ...] = ("env", "lm", "scale")
    model: str | None = None
    num_answers: int = 16
    num_tokens: int = 48
    dtype: Dtype = "float32"
    num_envs: int = 8192
    num_steps: int = 1000
    devices: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 5
    out: str = "runs/bench.json"
    baselines: str | None = None
    save_baseline: bool = False
    max_fall: float = 0.2
    profile: str | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        for suite in self.suite:
            if suite not in ("env", "lm", "scale"):
                raise InputError(f"suite={suite!r} is not one of env, lm, scale")
        if not self.suite:
            raise InputError("suite: name at least one of env, lm, scale")
        checks.at_least(self, 1, "num_answers", "num_tokens", "num_envs", "num_steps", "repeats")
        checks.fraction(self, "max_fall")
        if self.num_answers % self.group_size:
            raise InputError(
                f"num_answers={self.num_answers} must be a multiple of {self.group_size}, for GRPO's groups"
            )
        if sorted(set(self.devices)) != list(self.devices) or self.devices[:1] != (1,):
            raise InputError(f"devices={self.devices} must rise from 1, with which the others are compared")

    @property
    def group_size(self) -> int:
        """Completions of a prompt in GRPO."""
        return 4 if self.num_answers >= 4 else 2

    @property
    def model_name(self) -> str:
        """Folder or hub id of the language model."""
        named = None if self.quick else os.environ.get("JAXRL_LM_SMOLLM2")
        return self.model or named or str(DIALOGUE)

    @property
    def baselines_folder(self) -> Path:
        """Where earlier measurements are."""
        return BASELINES if self.baselines is None else Path(self.baselines)

    def sized(self) -> "BenchConfig":
        """The same, with tiny sizes if it is to be quick."""
        if not self.quick:
            return self
        return replace(self, num_answers=2, num_tokens=3, num_envs=8, num_steps=4, devices=(1, 2), repeats=1)

    def sizes(self) -> dict[str, Any]:
        """What measurements must have in common to be compared."""
        names = ("num_answers", "num_tokens", "dtype", "num_envs", "num_steps")
        return {name: getattr(self, name) for name in names} | {"devices": list(self.devices)}
