"""Metrics that measure the machine: they differ between equal runs."""

from typing import Any

from jaxrl_lm.storage import RunFolder, read_jsonl


def is_measured(name: str) -> bool:
    """Whether a metric depends on time."""
    return name.startswith(("time/", "energy/")) or name in ("flops/per_second", "flops/utilization")


def numbers(folder: RunFolder) -> list[dict[str, Any]]:
    """Every metric of a run that is not measured."""
    records = read_jsonl(folder.metrics_file)
    return [{name: value for name, value in record.items() if not is_measured(name)} for record in records]
