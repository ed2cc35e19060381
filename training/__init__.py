"""The training loop, and `Train`, the step that most recipes start with."""

from training.callbacks import Callback, Since
from training.compute import flop
from training.context import Context
from training.loop import Logits, Loss, TrainingDiverged, autocast, evaluate, fit, forward, lay_out, scaled_for
from training.objectives import Labels
from training.optimizers import Muon
from training.pretrained import Pretrained
from training.schedules import one_cycle
from training.teacher import Teacher
from training.techniques import check_start, check_techniques, first_epoch, fit_with
from training.train import Train, check_objective, fresh, round_weights

__all__ = [
    "Callback",
    "Context",
    "Labels",
    "Logits",
    "Loss",
    "Muon",
    "Pretrained",
    "Since",
    "Teacher",
    "Train",
    "TrainingDiverged",
    "autocast",
    "check_objective",
    "check_start",
    "check_techniques",
    "evaluate",
    "first_epoch",
    "fit",
    "fit_with",
    "flop",
    "forward",
    "fresh",
    "lay_out",
    "one_cycle",
    "round_weights",
    "scaled_for",
]
