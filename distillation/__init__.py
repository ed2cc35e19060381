"""Distillation: students and their teachers, and ensembles."""

from distillation.distill import Distill
from distillation.ensemble import Ensemble
from distillation.features import attention_loss, hint_loss
from distillation.loss import SoftTargets, distillation_loss
from distillation.teacher import guided_loss
from training import Teacher

__all__ = [
    "Distill",
    "Ensemble",
    "SoftTargets",
    "Teacher",
    "attention_loss",
    "distillation_loss",
    "guided_loss",
    "hint_loss",
]
