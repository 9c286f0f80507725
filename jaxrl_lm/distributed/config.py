"""Settings of the mesh of devices, in a module without heavy imports, for `--help`."""

from dataclasses import dataclass

from jaxrl_lm import checks


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices are arranged: `data * fsdp * tensor` of them.

    A batch is split over data and fsdp. Parameters and optimizer state are copied along data, and split along fsdp and
    tensor. Along fsdp, every device gathers the parameters of one layer at a time; along tensor, it computes a part of
    each layer. One axis may be 0: it uses the devices that the others leave.

    Attributes:
        data: copies of the model.
        fsdp: parts that a copy's parameters and optimizer state are split into (fully sharded data parallelism).
        tensor: parts that heads, feed-forward units and vocabulary are split into (tensor parallelism).
    """

    data: int = 1
    fsdp: int = 0
    tensor: int = 1

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "data", "fsdp", "tensor", prefix="mesh.")
