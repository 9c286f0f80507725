"""Settings of low-rank adapters, in a module without heavy imports, for `--help`."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError

Quantization = Literal["none", "int8", "nf4"]
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "nf4")

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA): train x A^T B^T * alpha / rank beside each projection x W^T, whose W stays as it is.

    Attributes:
        rank: rows of A; 0 trains the whole model.
        alpha: the adapters are multiplied by alpha / rank.
        targets: names of the projections that get an adapter, such as q_proj, or mlp.c_proj where one name stands for
            several; all-linear for all of the blocks. The experts of a mixture have none.
        rslora: multiply the adapters by alpha / sqrt(rank) instead.
        quantize: keep the projections of the blocks, which are not trained, as "int8" or "nf4" (QLoRA); all else is as
            without.

    Reference: Hu et al., 2021, LoRA: Low-Rank Adaptation of Large Language Models; Kalajdzievski, 2023, A Rank
    Stabilization Scaling Factor for Fine-Tuning with LoRA; Dettmers et al., 2023, QLoRA: Efficient Finetuning of
    Quantized LLMs.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    quantize: Quantization = "none"

    def __post_init__(self) -> None:
        checks.one_of(self, prefix="lora.", quantize=Quantization)
        checks.at_least(self, 0, "rank", prefix="lora.")
        checks.above(self, 0, "alpha", prefix="lora.")
        checks.finite(self, "alpha", prefix="lora.")
        if not self.targets or not all(self.targets):
            raise InputError(f"lora.targets={self.targets}: give names of projections, such as q_proj, or {ALL_LINEAR}")
        if ALL_LINEAR in self.targets and len(self.targets) > 1:
            raise InputError(f"lora.targets={self.targets}: {ALL_LINEAR} has all of them; give it alone, or names")
        if self.quantize != "none" and not self.rank:
            raise InputError(
                f"lora.quantize={self.quantize!r} with lora.rank=0: quantised weights are not trained; give a rank, "
                "such as --lora.rank 16"
            )

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def matched_by(self, path: tuple[str, ...]) -> list[str]:
        """The targets that a projection's path, such as `("backbone", "h_0", "mlp", "c_proj")`, ends with."""
        name = "." + ".".join(path)
        return [target for target in self.targets if target == ALL_LINEAR or name.endswith(f".{target}")]
