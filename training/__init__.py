"""The one training loop, and `Train`, the step that every recipe starts with."""

from training.context import Context, Step, StepError
from training.loop import TrainingDiverged, autocast, fit, one_cycle
from training.train import Train

__all__ = ["Context", "Step", "StepError", "Train", "TrainingDiverged", "autocast", "fit", "one_cycle"]
