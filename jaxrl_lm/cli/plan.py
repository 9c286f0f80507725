"""`jaxrl-lm plan`: whether a run fits on a TPU slice, without a TPU."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxrl_lm import storage
from jaxrl_lm.cli.console import print_text
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.planning.config import PlanConfig
from jaxrl_lm.training.planning.plan import Plan, advice, make_plan, use_described_devices
from jaxrl_lm.training.planning.slices import GENERATIONS, find_slice, slices_of


def run_plan(config: PlanConfig) -> None:
    """Compile for the slice, and print memory, work and verdict."""
    if config.out is not None and not Path(config.out).parent.is_dir():
        raise InputError(f"out={config.out!r}: there is no folder {str(Path(config.out).parent)!r}; make it first")
    largest = slices_of(config.slice)[-1] if config.slice in GENERATIONS else find_slice(config.slice)
    plan = make_plan(config, use_described_devices(largest.num_devices))
    console = Console()
    console.print(_memory(plan))
    console.print(_work(plan))
    print_text(verdict(config, plan), console=console, soft_wrap=True)
    if config.out is not None:
        content = {"settings": asdict(config), **asdict(plan), "fits": plan.fits}
        storage.write_atomically(Path(config.out), json.dumps(content, indent=2) + "\n")


def verdict(config: PlanConfig, plan: Plan) -> str:
    """A sentence on whether it fits, and what to change if not."""
    peak, there = _gigabytes(plan.peak_bytes), _gigabytes(plan.device_bytes)
    share = f"{plan.peak_bytes / plan.device_bytes:.0%}"
    where = f"{config.algorithm} of {config.model} on {plan.slice} ({plan.num_chips} chips)"
    if plan.platform == "cpu":
        where += ", compiled for virtual CPU devices (pip install 'jaxrl-lm[plan]' for TPU programs)"
    if plan.fits:
        return f"{where}: fits, {peak} of {there} per device ({share})."
    lacking = _gigabytes(plan.peak_bytes - plan.device_bytes)
    changes = "".join(f"\n- {line}" for line in advice(config, plan))
    return f"{where}: does not fit, {peak} per device, {lacking} more than the {there} there are. To change:{changes}"


def _memory(plan: Plan) -> Table:
    shape = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    table = Table("memory per device", *plan.programs, title=f"{plan.slice}, mesh {shape}")
    for name, size in plan.parts.items():
        table.add_row(name, *[_gigabytes(size)] * len(plan.programs))
    programs = plan.programs.values()
    table.add_row("activations, caches, gradients", *(_gigabytes(each.temporary_bytes) for each in programs))
    table.add_row("peak", *(_gigabytes(each.peak_bytes) for each in programs), style="bold")
    return table


def _work(plan: Plan) -> Table:
    table = Table("work", *plan.programs)
    programs = plan.programs.values()
    table.add_row("TFLOP, all devices", *(f"{each.flops / 1e12:,.1f}" for each in programs))
    table.add_row("products at peak rate", *(f"{each.compute_seconds:.3g} s" for each in programs))
    table.add_row("reading weights, state, cache", *(f"{each.memory_seconds:.3g} s" for each in programs))
    for kind in sorted({kind for each in programs for kind in each.collective_bytes}):
        table.add_row(f"{kind}, per device", *(_gigabytes(each.collective_bytes.get(kind, 0)) for each in programs))
    table.add_row("collectives at full bandwidth", *(f"{each.network_seconds:.3g} s" for each in programs))
    table.add_row("compiled in", *(f"{each.compile_seconds:.1f} s" for each in programs))
    return table


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"
