from .base import (
    LevelEnvironment as LevelEnvironment,
    MaskedObservation as MaskedObservation,
    StepResult as StepResult,
    reset_batch as reset_batch,
    step_batch as step_batch,
)
from .registry import (
    list_ids as list_ids,
    make as make,
    register_with_gymnax as register_with_gymnax,
)
