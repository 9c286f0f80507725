"""Settings of binning, which are read without loading gymnax."""

from dataclasses import dataclass

from jaxrl_lm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BinningConfig:
    """Settings of the discretisation.

    Attributes:
        num_bins: bins per observation axis, or one number for all; 1 ignores an axis, None keeps observations
            continuous.
        low: lower bound of each observation axis; None (for all, or for one axis) uses the bound of the space.
        high: upper bounds, likewise. Values outside fall into the first or last bin.
        num_actions: values per axis of a Box action space, or one number for all, evenly spaced between the bounds of
            the space, both included; None keeps actions continuous.
    """

    num_bins: int | tuple[int, ...] | None = None
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    num_actions: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if self.num_bins is None and getattr(self, name) is not None:
                raise InputError(f"{name}={getattr(self, name)} bounds bins of observations; give num_bins too")
