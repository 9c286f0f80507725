"""Metrics that measure the machine: they differ between equal runs."""


def is_measured(name: str) -> bool:
    """Whether a metric depends on time."""
    return name.startswith(("time/", "energy/")) or name in ("flops/per_second", "flops/utilization")
