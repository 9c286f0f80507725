"""Worlds to act in: ours and gymnax's, made by name and stepped by the batch."""

from jaxrl_lm.envs.base import MaskedObservation, StepResult, reset_batch, step_batch
from jaxrl_lm.envs.registry import list_ids, make, register_with_gymnax

__all__ = [
    "MaskedObservation",
    "StepResult",
    "list_ids",
    "make",
    "register_with_gymnax",
    "reset_batch",
    "step_batch",
]
