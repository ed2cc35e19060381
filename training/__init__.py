"""The one training loop, and `Train`, the step that every recipe starts with."""

from training.callbacks import Callback, Since
from training.context import Context
from training.loop import Loss, TrainingDiverged, autocast, evaluate, fit, forward, lay_out, smoothed_cross_entropy
from training.optimizers import Muon
from training.schedules import one_cycle
from training.train import Train, fresh, round_weights

__all__ = [
    "Callback",
    "Context",
    "Loss",
    "Muon",
    "Since",
    "Train",
    "TrainingDiverged",
    "autocast",
    "evaluate",
    "fit",
    "forward",
    "fresh",
    "lay_out",
    "one_cycle",
    "round_weights",
    "smoothed_cross_entropy",
]
