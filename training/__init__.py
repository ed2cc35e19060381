"""The one training loop, and `Train`, the step that every recipe starts with."""

from training.context import Context
from training.loop import Loss, TrainingDiverged, autocast, evaluate, fit, one_cycle, smoothed_cross_entropy
from training.train import Train, fresh, round_weights

__all__ = [
    "Context",
    "Loss",
    "Train",
    "TrainingDiverged",
    "autocast",
    "evaluate",
    "fit",
    "fresh",
    "one_cycle",
    "round_weights",
    "smoothed_cross_entropy",
]
