"""TPU slices by name, their chips, and what one chip can do.

Figures are per chip, from Google Cloud's pages on each generation. The interconnect is what a chip can send over all
of its links, in one direction.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from jaxrl_lm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation of TPUs.

    Attributes:
        memory_gib: HBM, GiB.
        tflops: bfloat16 products, 1e12 operations per second.
        memory_gbs: bandwidth of the HBM, 1e9 bytes per second.
        network_gbs: bandwidth of the interconnect, 1e9 bytes per second.
        num_dimensions: of its torus.
        cores_per_name: units that the number in a slice's name counts, for each chip (Google counts cores of some).
        devices_per_chip: JAX devices of one chip.
        options: of the topology's description.
    """

    memory_gib: float
    tflops: float
    memory_gbs: float
    network_gbs: float
    num_dimensions: int
    cores_per_name: int = 1
    devices_per_chip: int = 1
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def device_bytes(self) -> float:
        """Memory of one JAX device, bytes."""
        return self.memory_gib * 2**30 / self.devices_per_chip


GENERATIONS: dict[str, Generation] = {
    "v4": Generation(
        memory_gib=32.0,
        tflops=275.0,
        memory_gbs=1228.0,
        network_gbs=300.0,
        num_dimensions=3,
        cores_per_name=2,
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Generation(memory_gib=16.0, tflops=197.0, memory_gbs=819.0, network_gbs=200.0, num_dimensions=2),
    "v5p": Generation(
        memory_gib=95.0, tflops=459.0, memory_gbs=2765.0, network_gbs=600.0, num_dimensions=3, cores_per_name=2
    ),
    "v6e": Generation(memory_gib=32.0, tflops=918.0, memory_gbs=1638.0, network_gbs=400.0, num_dimensions=2),
    "tpu7x": Generation(
        memory_gib=192.0,
        tflops=2307.0,
        memory_gbs=7380.0,
        network_gbs=600.0,
        num_dimensions=3,
        cores_per_name=2,
        devices_per_chip=2,
    ),
}

_NAME = re.compile(r"(?P<generation>[a-z0-9]+)-(?P<number>\d+)")
_MOST_CHIPS = {2: 256, 3: 4096}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A slice of TPUs.

    Attributes:
        name: such as v5e-16.
        generation: name in `GENERATIONS`.
        num_chips: chips.
    """

    name: str
    generation: str
    num_chips: int

    @property
    def chip(self) -> Generation:
        """What one chip can do."""
        return GENERATIONS[self.generation]

    @property
    def num_devices(self) -> int:
        """JAX devices."""
        return self.num_chips * self.chip.devices_per_chip

    @property
    def topology(self) -> str:
        """The shape of its torus, such as 4x4."""
        return "x".join(map(str, _torus(self.num_chips, self.chip.num_dimensions)))


def find_slice(name: str) -> Slice:
    """The slice of this name.

    Raises:
        InputError: there is none; lists the known ones.
    """
    match = _NAME.fullmatch(name)
    known = {each.name: each for generation in GENERATIONS for each in slices_of(generation)}
    if match is None or name not in known:
        examples = "; ".join(
            f"{generation}: {', '.join(each.name for each in slices_of(generation))}" for generation in GENERATIONS
        )
        raise InputError(f"slice={name!r} is not known; known slices are {examples}")
    return known[name]


def slices_of(generation: str) -> list[Slice]:
    """The slices of a generation, the smallest first: powers of 2, from one host of four chips on, and one chip."""
    chip = GENERATIONS[generation]
    most = _MOST_CHIPS[chip.num_dimensions]
    counts = [1 << power for power in range(int(math.log2(most)) + 1)]
    fitting = [count for count in counts if count >= 4 or (count == 1 and chip.num_dimensions == 2)]
    return [
        Slice(name=f"{generation}-{count * chip.cores_per_name}", generation=generation, num_chips=count)
        for count in fitting
    ]


def _torus(num_chips: int, num_dimensions: int) -> tuple[int, ...]:
    """The most even shape of a power of two, the smallest side first; a host of four chips is 2x2x1."""
    power = int(math.log2(num_chips))
    if num_dimensions == 3 and num_chips == 4:
        return 2, 2, 1
    short, extra = divmod(power, num_dimensions)
    sides = [1 << (short + (index >= num_dimensions - extra)) for index in range(num_dimensions)]
    return tuple(sides)
