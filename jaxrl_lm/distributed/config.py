"""Settings of devices and hosts, in a module without heavy imports, for `--help`."""

from dataclasses import dataclass

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError


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


@dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Several processes that run one program, usually one on each host.

    Attributes:
        coordinator: HOST:PORT of process 0, the same on all; "auto" finds the others by what a TPU VM, SLURM, Open MPI
            or Kubernetes tells about itself. None runs this process alone.
        num_processes: number of processes; not with "auto".
        process_id: number of this process, from 0; not with "auto".
        timeout: seconds to wait for the others at the start.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout: int = 300

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "num_processes", "timeout", prefix="hosts.")
        checks.at_least(self, 0, "process_id", prefix="hosts.")
        is_numbered = self.num_processes is not None and self.process_id is not None
        is_alone = self.coordinator in (None, "auto")
        if is_alone and (self.num_processes is not None or self.process_id is not None):
            raise InputError(
                f"hosts.coordinator={self.coordinator}: num_processes and process_id need HOST:PORT of process 0"
            )
        if not is_alone and not is_numbered:
            raise InputError(
                f"hosts.coordinator={self.coordinator!r} needs --hosts.num-processes and --hosts.process-id, or give "
                "auto on a TPU VM, SLURM, Open MPI or Kubernetes"
            )
        if self.num_processes is not None and self.process_id is not None and self.process_id >= self.num_processes:
            raise InputError(
                f"hosts.process_id={self.process_id} must be below hosts.num_processes={self.num_processes}"
            )
