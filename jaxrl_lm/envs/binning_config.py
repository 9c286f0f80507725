"""Settings of binning, which are read without loading gymnax."""

from dataclasses import dataclass

from jaxrl_lm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BinningConfig:
    """How finely spaces are cut.

    Attributes:
        num_bins: bins of each observation axis, or one number for all; 1 leaves an axis out, None leaves observations
            as they are.
        low: lower bound of each observation axis; None (for all, or for one axis) takes the space's.
        high: upper bounds, likewise. What lies outside falls into the first or the last bin.
        num_actions: values of each axis of a Box of actions, or one number for all, evenly spaced from the space's
            lower to its upper bound, both included; None leaves actions as they are.
    """

    num_bins: int | tuple[int, ...] | None = None
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    num_actions: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if self.num_bins is None and getattr(self, name) is not None:
                raise InputError(f"{name}={getattr(self, name)} bounds bins of observations; give num_bins too")
