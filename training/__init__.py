"""The one training loop, and `Train`, the step that every recipe starts with."""

from training.context import (
    Context,
    Step,
    StepError,
    check_training,
    check_whole,
    is_number,
    refuse_unused,
    training_fields,
)
from training.loop import Loss, TrainingDiverged, autocast, evaluate, fit, one_cycle, smoothed_cross_entropy
from training.train import Train, fresh, round_weights

__all__ = [
    "Context",
    "Loss",
    "Step",
    "StepError",
    "Train",
    "TrainingDiverged",
    "autocast",
    "check_training",
    "check_whole",
    "evaluate",
    "fit",
    "fresh",
    "is_number",
    "one_cycle",
    "refuse_unused",
    "round_weights",
    "smoothed_cross_entropy",
    "training_fields",
]
